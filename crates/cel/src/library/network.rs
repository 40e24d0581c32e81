//! Addresses, ranges and URLs.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use ipnet::IpNet;
use url::Url;

use crate::error::EvalError;
use crate::functions::{Cost, Outcome, Row};
use crate::library::opaque::{Opaque, value};
use crate::value::{Key, Map, Text, Value};

pub(crate) const ROWS: &[Row] = &[
    ("isIP", &["(string) bool"], Cost::Parse(1), |_, args| {
        Ok(Value::Bool(parse_ip(text(args, 0)?).is_ok()))
    }),
    ("ip", &["(string) Ip", "Cidr.() Ip"], Cost::Ip, |_, args| match args {
        [Value::String(text)] => parse_ip(text)
            .map(|ip| value(Opaque::Ip(ip)))
            .map_err(EvalError::Failed),
        [Value::Opaque(opaque)] => match &**opaque {
            Opaque::Cidr(cidr) => Ok(value(Opaque::Ip(cidr.addr()))),
            _ => Err(EvalError::no_overload()),
        },
        _ => Err(EvalError::no_overload()),
    }),
    ("ip.isCanonical", &["(string) bool"], Cost::Parse(2), |_, args| {
        let text = text(args, 0)?;
        let ip = parse_ip(text).map_err(EvalError::Failed)?;
        Ok(Value::Bool(ip.to_string() == text))
    }),
    ("family", &["Ip.() int"], Cost::Fixed(1), |_, args| {
        Ok(Value::Int(if ip(args, 0)?.is_ipv4() { 4 } else { 6 }))
    }),
    ("isUnspecified", &["Ip.() bool"], Cost::Fixed(1), |_, args| {
        Ok(Value::Bool(ip(args, 0)?.is_unspecified()))
    }),
    ("isLoopback", &["Ip.() bool"], Cost::Fixed(1), |_, args| {
        Ok(Value::Bool(ip(args, 0)?.is_loopback()))
    }),
    ("isLinkLocalMulticast", &["Ip.() bool"], Cost::Fixed(1), |_, args| {
        Ok(Value::Bool(link_local_multicast(ip(args, 0)?)))
    }),
    ("isLinkLocalUnicast", &["Ip.() bool"], Cost::Fixed(1), |_, args| {
        Ok(Value::Bool(link_local_unicast(ip(args, 0)?)))
    }),
    ("isGlobalUnicast", &["Ip.() bool"], Cost::Fixed(1), |_, args| {
        let ip = ip(args, 0)?;
        let broadcast = matches!(ip, IpAddr::V4(ip) if ip.is_broadcast());
        let special = ip.is_unspecified() || ip.is_loopback() || ip.is_multicast() || link_local_unicast(ip);
        Ok(Value::Bool(!broadcast && !special))
    }),
    ("isCIDR", &["(string) bool"], Cost::Parse(1), |_, args| {
        Ok(Value::Bool(parse_cidr(text(args, 0)?).is_ok()))
    }),
    ("cidr", &["(string) Cidr"], Cost::Parse(1), |_, args| {
        parse_cidr(text(args, 0)?)
            .map(|cidr| value(Opaque::Cidr(cidr)))
            .map_err(EvalError::Failed)
    }),
    (
        "containsIP",
        &["Cidr.(string) bool", "Cidr.(Ip) bool"],
        Cost::ContainsIp,
        |_, args| {
            let other = match args.get(1) {
                Some(Value::String(text)) => parse_ip(text).map_err(EvalError::Failed)?,
                _ => ip(args, 1)?,
            };
            Ok(Value::Bool(cidr(args, 0)?.contains(&other)))
        },
    ),
    (
        "containsCIDR",
        &["Cidr.(string) bool", "Cidr.(Cidr) bool"],
        Cost::ContainsCidr,
        |_, args| {
            let other = match args.get(1) {
                Some(Value::String(text)) => parse_cidr(text).map_err(EvalError::Failed)?,
                _ => cidr(args, 1)?,
            };
            Ok(Value::Bool(cidr(args, 0)?.trunc().contains(&other.trunc())))
        },
    ),
    ("prefixLength", &["Cidr.() int"], Cost::Fixed(1), |_, args| {
        Ok(Value::Int(cidr(args, 0)?.prefix_len().into()))
    }),
    ("masked", &["Cidr.() Cidr"], Cost::Fixed(1), |_, args| {
        Ok(value(Opaque::Cidr(cidr(args, 0)?.trunc())))
    }),
    ("isURL", &["(string) bool"], Cost::Fixed(1), |_, args| {
        Ok(Value::Bool(parse_url(text(args, 0)?).is_some()))
    }),
    ("url", &["(string) Url"], Cost::Text(1), |_, args| {
        let text = text(args, 0)?;
        match parse_url(text) {
            Some(url) => Ok(value(Opaque::Url(Box::new(url), text.to_owned()))),
            None => Err(EvalError::Failed(format!(
                "URL parse error during conversion from string: parse {text:?}: invalid URI for request"
            ))),
        }
    }),
    ("getScheme", &["Url.() string"], Cost::Fixed(1), |_, args| {
        of_url(args, |url, _| scheme(url).to_owned())
    }),
    ("getHost", &["Url.() string"], Cost::Fixed(1), |_, args| {
        of_url(args, |_, text| authority(text).to_owned())
    }),
    ("getHostname", &["Url.() string"], Cost::Fixed(1), |_, args| {
        of_url(args, |_, text| {
            let host = authority(text);
            match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
                Some((inner, _)) => inner.to_owned(),
                None => host.rsplit_once(':').map_or(host, |(host, _)| host).to_owned(),
            }
        })
    }),
    ("getPort", &["Url.() string"], Cost::Fixed(1), |_, args| {
        of_url(args, |_, text| {
            let host = authority(text);
            let after = host.rsplit_once(']').map_or(host, |(_, after)| after);
            after.rsplit_once(':').map_or("", |(_, port)| port).to_owned()
        })
    }),
    ("getEscapedPath", &["Url.() string"], Cost::Fixed(1), |_, args| {
        of_url(args, |url, text| {
            if text.starts_with('/') || has_path(text) {
                url.path().to_owned()
            } else {
                String::new()
            }
        })
    }),
    (
        "getQuery",
        &["Url.() map(string,list(string))"],
        Cost::Fixed(1),
        |_, args| {
            let (url, _) = url_of(args)?;
            let mut query: BTreeMap<Key<'_>, Vec<Value<'_>>> = BTreeMap::new();
            for (key, item) in url.query_pairs() {
                query
                    .entry(Key::String(Text::Own((*key).into())))
                    .or_default()
                    .push(Value::string(item.into_owned()));
            }
            let query = query
                .into_iter()
                .map(|(key, items)| (key, Value::list(items)))
                .collect();
            Ok(Value::Map(Map::Own(Rc::new(query))))
        },
    ),
];

fn text<'v>(args: &'v [Value<'_>], at: usize) -> Result<&'v str, EvalError> {
    args.get(at).and_then(Value::as_str).ok_or_else(EvalError::no_overload)
}

fn ip(args: &[Value<'_>], at: usize) -> Result<IpAddr, EvalError> {
    if let Some(Value::Opaque(opaque)) = args.get(at)
        && let Opaque::Ip(ip) = &**opaque
    {
        return Ok(*ip);
    }
    Err(EvalError::no_overload())
}

fn cidr(args: &[Value<'_>], at: usize) -> Result<IpNet, EvalError> {
    if let Some(Value::Opaque(opaque)) = args.get(at)
        && let Opaque::Cidr(cidr) = &**opaque
    {
        return Ok(*cidr);
    }
    Err(EvalError::no_overload())
}

fn parse_ip(text: &str) -> Result<IpAddr, String> {
    if text.contains('%') {
        return Err(format!("IP address {text:?} with zone value is not allowed"));
    }
    let ip: IpAddr = text.parse().map_err(|_| {
        format!(
            "IP Address {text:?} parse error during conversion from string: ParseAddr({text:?}): unable to parse IP"
        )
    })?;
    match ip {
        IpAddr::V6(ip) if ip.to_ipv4_mapped().is_some() => {
            Err(format!("IPv4-mapped IPv6 address {text:?} is not allowed"))
        }
        ip => Ok(ip),
    }
}

fn parse_cidr(text: &str) -> Result<IpNet, String> {
    let wrong =
        || format!("network address parse error during conversion from string: netip.ParsePrefix({text:?}): no '/'");
    let (address, length) = text.split_once('/').ok_or_else(wrong)?;
    parse_ip(address)?;
    if length.len() > 1 && length.starts_with('0') {
        return Err(wrong());
    }
    text.parse().map_err(|_| wrong())
}

fn link_local_unicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    }
}

fn link_local_multicast(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.octets().starts_with(&[224, 0, 0]),
        IpAddr::V6(ip) => ip.segments().first().is_some_and(|first| first & 0xff0f == 0xff02),
    }
}

/// As Go's `ParseRequestURI`: absolute, or an absolute path.
fn parse_url(text: &str) -> Option<Url> {
    if text.is_empty() || text.chars().any(|c| c.is_ascii_control() || c == ' ') {
        return None;
    }
    if text.starts_with('/') {
        return Url::parse("path://")
            .ok()?
            .join(text)
            .ok()
            .or_else(|| Url::parse(&format!("path://x{text}")).ok());
    }
    Url::parse(text).ok()
}

fn scheme(url: &Url) -> &str {
    match url.scheme() {
        "path" => "",
        scheme => scheme,
    }
}

/// Host and port as written.
fn authority(text: &str) -> &str {
    let Some((_, rest)) = text.split_once("://") else {
        return "";
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let authority = rest.get(..end).unwrap_or_default();
    authority.rsplit_once('@').map_or(authority, |(_, host)| host)
}

fn has_path(text: &str) -> bool {
    text.split_once("://")
        .is_some_and(|(_, rest)| rest.split(['?', '#']).next().unwrap_or_default().contains('/'))
}

fn url_of<'v>(args: &'v [Value<'_>]) -> Result<(&'v Url, &'v str), EvalError> {
    if let Some(Value::Opaque(opaque)) = args.first()
        && let Opaque::Url(url, text) = &**opaque
    {
        return Ok((url, text));
    }
    Err(EvalError::no_overload())
}

fn of_url<'a>(args: &[Value<'a>], get: impl Fn(&Url, &str) -> String) -> Outcome<'a> {
    let (url, text) = url_of(args)?;
    Ok(Value::string(get(url, text)))
}
