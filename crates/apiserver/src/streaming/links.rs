//! Links of a proxied page, rewritten so that they stay inside the proxy.
//!
//! A backend behind `…/proxy/` does not know the path it is seen under. Links to itself (absolute paths, or URLs
//! with its own authority or the one the client asked) get the proxy's path in front, in `Location` and in the
//! URL-valued attributes of HTML tags; links elsewhere and relative ones stay. What is not rewritten keeps its bytes.
//!
//! The rewriter works on the stream: it holds no more than one unfinished tag, and a tag longer than
//! [`MAX_TAG`] is passed on as it is. Compressed pages are opened and closed again, piece by piece.
//!
//! Differs from upstream, which buffers the whole page and prints every tag anew.

use std::io::Write;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use flate2::Compression;
use flate2::write::{DeflateDecoder, DeflateEncoder, GzDecoder, GzEncoder};
use http_body::Frame;

use crate::body::{Body, BoxError};

/// The longest tag that is looked into.
const MAX_TAG: usize = 64 << 10;

/// The attributes that hold URLs, by tag.
const ATTRIBUTES: &[(&str, &[&str])] = &[
    ("a", &["href"]),
    ("applet", &["codebase"]),
    ("area", &["href"]),
    ("audio", &["src"]),
    ("base", &["href"]),
    ("blockquote", &["cite"]),
    ("body", &["background"]),
    ("button", &["formaction"]),
    ("command", &["icon"]),
    ("del", &["cite"]),
    ("embed", &["src"]),
    ("form", &["action"]),
    ("frame", &["longdesc", "src"]),
    ("head", &["profile"]),
    ("html", &["manifest"]),
    ("iframe", &["longdesc", "src"]),
    ("img", &["longdesc", "src", "usemap"]),
    ("input", &["src", "usemap", "formaction"]),
    ("ins", &["cite"]),
    ("link", &["href"]),
    ("object", &["classid", "codebase", "data", "usemap"]),
    ("q", &["cite"]),
    ("script", &["src"]),
    ("source", &["src"]),
    ("video", &["poster", "src"]),
];
/// Elements whose content is text up to their own end tag.
const RAW_TEXT: &[&str] = &[
    "script", "style", "textarea", "title", "xmp", "iframe", "noembed", "noframes",
];

/// Where the page is seen from.
#[derive(Clone, Debug)]
pub struct Links {
    /// The proxy's own path, without a slash at the end.
    pub base: String,
    /// The authority that was talked to.
    pub backend: String,
    /// The authority the client named.
    pub asked: String,
}

impl Links {
    /// The link as it must be; `None` when it may stay.
    pub fn rewritten(&self, link: &str) -> Option<String> {
        let parsed = Link::parse(link)?;
        let elsewhere = parsed
            .authority
            .is_some_and(|authority| authority != self.backend && authority != self.asked);
        if elsewhere || !parsed.path.starts_with('/') {
            return None;
        }
        // Of the client's own authority scheme and host stay; the backend's mean nothing to the client.
        let keep = if parsed.authority == Some(self.asked.as_str()) {
            &link[..parsed.path_at]
        } else {
            ""
        };
        let inside = parsed.path.starts_with(&self.base);
        let path = if inside {
            parsed.path.to_owned()
        } else {
            joined(&self.base, parsed.path)
        };
        let moved = format!("{keep}{path}{}", parsed.rest);
        (moved != link).then_some(moved)
    }
}

/// The parts of a URL that matter here.
struct Link<'a> {
    authority: Option<&'a str>,
    path: &'a str,
    path_at: usize,
    /// Query and fragment with their marks.
    rest: &'a str,
}

impl<'a> Link<'a> {
    fn parse(link: &'a str) -> Option<Self> {
        if link.bytes().any(|byte| byte.is_ascii_control()) {
            return None;
        }
        let mut at = 0;
        if let Some(colon) = link.find([':', '/', '?', '#'])
            && link[colon..].starts_with(':')
        {
            let scheme = &link[..colon];
            let proper = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
                && scheme
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.'));
            if !proper {
                return None;
            }
            at = colon + 1;
        }
        let mut authority = None;
        if let Some(after) = link[at..].strip_prefix("//") {
            let end = after.find(['/', '?', '#']).unwrap_or(after.len());
            let whole = &after[..end];
            authority = Some(whole.rsplit_once('@').map_or(whole, |(_, host)| host));
            at += 2 + end;
        }
        let tail = &link[at..];
        let end = tail.find(['?', '#']).unwrap_or(tail.len());
        Some(Link {
            authority,
            path: &tail[..end],
            path_at: at,
            rest: &tail[end..],
        })
    }
}

/// `base` and `path` as one clean path; a slash at the end stays.
pub fn joined(base: &str, path: &str) -> String {
    let mut segments: Vec<&str> = Vec::new();
    for segment in base.split('/').chain(path.split('/')) {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let mut whole = String::with_capacity(base.len() + path.len() + 1);
    for segment in &segments {
        whole.push('/');
        whole.push_str(segment);
    }
    if segments.is_empty() || path.ends_with('/') {
        whole.push('/');
    }
    whole
}

/// Rewrites HTML as it comes.
struct Rewriter {
    links: Links,
    /// What has come and was not passed on: the beginning of a tag, or of the end of a raw text.
    held: Vec<u8>,
    /// Inside such an element.
    raw: Option<&'static str>,
}

impl Rewriter {
    fn feed(&mut self, piece: &[u8], out: &mut Vec<u8>) {
        self.held.extend_from_slice(piece);
        let held = std::mem::take(&mut self.held);
        let mut rest: &[u8] = &held;
        while let Some(step) = self.step(rest, out) {
            rest = rest.get(step..).unwrap_or_default();
        }
        if rest.len() > MAX_TAG {
            out.extend_from_slice(rest);
        } else {
            self.held = rest.to_vec();
        }
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
    }

    /// Passes on what is complete at the beginning of `rest`; how much that was.
    fn step(&mut self, rest: &[u8], out: &mut Vec<u8>) -> Option<usize> {
        if rest.is_empty() {
            return None;
        }
        let Some(open) = rest.iter().position(|byte| *byte == b'<') else {
            out.extend_from_slice(rest);
            return Some(rest.len());
        };
        if open > 0 {
            out.extend_from_slice(&rest[..open]);
            return Some(open);
        }
        if let Some(element) = self.raw {
            let wanted = element.len() + 2;
            let ends = |bytes: &[u8]| {
                bytes.starts_with(b"</") && bytes[2..].eq_ignore_ascii_case(&element.as_bytes()[..bytes.len() - 2])
            };
            if rest.len() < wanted && (rest.len() < 2 || ends(rest)) {
                return None;
            }
            if rest.len() >= wanted && ends(&rest[..wanted]) {
                self.raw = None;
            }
            out.push(b'<');
            return Some(1);
        }
        if rest.starts_with(b"<!--") {
            let end = rest.windows(3).skip(2).position(|window| window == b"-->")? + 5;
            out.extend_from_slice(&rest[..end]);
            return Some(end);
        }
        if b"<!--".starts_with(rest) {
            return None;
        }
        match rest.get(1) {
            None => None,
            Some(letter) if letter.is_ascii_alphabetic() => {
                let end = tag_end(rest)?;
                self.tag(&rest[..end], out);
                Some(end)
            }
            Some(_) => {
                out.push(b'<');
                Some(1)
            }
        }
    }

    /// One whole start tag.
    fn tag(&mut self, tag: &[u8], out: &mut Vec<u8>) {
        let name_end = tag
            .iter()
            .position(|byte| byte.is_ascii_whitespace() || matches!(byte, b'/' | b'>'))
            .unwrap_or(tag.len());
        let is = |name: &str| {
            tag.get(1..name_end)
                .is_some_and(|own| own.eq_ignore_ascii_case(name.as_bytes()))
        };
        self.raw = RAW_TEXT.iter().copied().find(|name| is(name));
        let urls = ATTRIBUTES.iter().find(|(name, _)| is(name)).map(|(_, urls)| *urls);
        let (Some(urls), Ok(text)) = (urls, std::str::from_utf8(tag)) else {
            out.extend_from_slice(tag);
            return;
        };
        let mut copied = 0;
        for (name, value) in attributes(text, name_end) {
            let link = &text[value.clone()];
            if urls.iter().any(|own| own.eq_ignore_ascii_case(&text[name.clone()]))
                && let Some(moved) = self.links.rewritten(link)
            {
                out.extend_from_slice(&tag[copied..value.start]);
                out.extend_from_slice(moved.as_bytes());
                copied = value.end;
            }
        }
        out.extend_from_slice(&tag[copied..]);
    }
}

/// Where the tag at the beginning ends, one past its `>`; quotes may hide others.
fn tag_end(bytes: &[u8]) -> Option<usize> {
    let mut quote = None;
    let mut before = 0u8;
    for (at, byte) in bytes.iter().enumerate() {
        match (quote, byte) {
            (None, b'>') => return Some(at + 1),
            // A quote opens a value only after `=`.
            (None, b'"' | b'\'') if before == b'=' => quote = Some(*byte),
            (Some(open), close) if open == *close => quote = None,
            _ => {}
        }
        if !byte.is_ascii_whitespace() {
            before = *byte;
        }
    }
    None
}

type Span = std::ops::Range<usize>;

/// Names and values of a tag's attributes, as places in `tag`.
fn attributes(tag: &str, from: usize) -> Vec<(Span, Span)> {
    let bytes = tag.as_bytes();
    let skip = |mut at: usize, while_: &dyn Fn(u8) -> bool| {
        while bytes.get(at).is_some_and(|byte| while_(*byte)) {
            at += 1;
        }
        at
    };
    let space = |byte: u8| byte.is_ascii_whitespace();
    let mut found = Vec::new();
    let mut at = from;
    loop {
        let start = skip(at, &|byte| space(byte) || byte == b'/');
        let end = skip(start, &|byte| !space(byte) && !matches!(byte, b'=' | b'>' | b'/'));
        let equals = skip(end, &space);
        if bytes.get(equals) != Some(&b'=') {
            if end == start {
                return found;
            }
            at = end;
            continue;
        }
        let value = skip(equals + 1, &space);
        at = match bytes.get(value) {
            Some(&quote @ (b'"' | b'\'')) => {
                let close = skip(value + 1, &|byte| byte != quote);
                found.push((start..end, value + 1..close));
                close + 1
            }
            Some(_) => {
                let close = skip(value, &|byte| !space(byte) && byte != b'>');
                found.push((start..end, value..close));
                close
            }
            None => return found,
        };
    }
}

/// How a page is packed.
enum Coding {
    Plain,
    Gzip(GzDecoder<Vec<u8>>, GzEncoder<Vec<u8>>),
    Deflate(DeflateDecoder<Vec<u8>>, DeflateEncoder<Vec<u8>>),
}

/// A page on its way through.
struct Page {
    inner: Body,
    coding: Coding,
    rewriter: Option<Rewriter>,
}

/// The body with its links rewritten; `None` when its coding is not one that is understood.
pub fn page(body: Body, links: Links, coding: &str) -> Result<Body, Body> {
    let coding = match coding {
        "" => Coding::Plain,
        "gzip" => Coding::Gzip(
            GzDecoder::new(Vec::new()),
            GzEncoder::new(Vec::new(), Compression::fast()),
        ),
        "deflate" => Coding::Deflate(
            DeflateDecoder::new(Vec::new()),
            DeflateEncoder::new(Vec::new(), Compression::fast()),
        ),
        _ => return Err(body),
    };
    Ok(Body::Boxed(Box::pin(Page {
        inner: body,
        coding,
        rewriter: Some(Rewriter {
            links,
            held: Vec::new(),
            raw: None,
        }),
    })))
}

impl Page {
    fn piece(&mut self, piece: &[u8]) -> std::io::Result<Vec<u8>> {
        let mut out = Vec::with_capacity(piece.len() + 256);
        let Some(rewriter) = &mut self.rewriter else {
            return Ok(out);
        };
        // A few kilobytes at a time, so that what is unpacked stays small however well it was packed.
        for piece in piece.chunks(4 << 10) {
            match &mut self.coding {
                Coding::Plain => rewriter.feed(piece, &mut out),
                Coding::Gzip(open, close) => {
                    open.write_all(piece)?;
                    let plain = std::mem::take(open.get_mut());
                    rewriter.feed(&plain, &mut out);
                    close.write_all(&std::mem::take(&mut out))?;
                }
                Coding::Deflate(open, close) => {
                    open.write_all(piece)?;
                    let plain = std::mem::take(open.get_mut());
                    rewriter.feed(&plain, &mut out);
                    close.write_all(&std::mem::take(&mut out))?;
                }
            }
        }
        match &mut self.coding {
            Coding::Plain => {}
            Coding::Gzip(_, close) => out = std::mem::take(close.get_mut()),
            Coding::Deflate(_, close) => out = std::mem::take(close.get_mut()),
        }
        Ok(out)
    }

    fn end(&mut self) -> std::io::Result<Vec<u8>> {
        let Some(mut rewriter) = self.rewriter.take() else {
            return Ok(Vec::new());
        };
        let mut out = Vec::new();
        match &mut self.coding {
            Coding::Plain => rewriter.finish(&mut out),
            Coding::Gzip(open, close) => {
                open.try_finish()?;
                rewriter.feed(&std::mem::take(open.get_mut()), &mut out);
                rewriter.finish(&mut out);
                close.write_all(&out)?;
                close.try_finish()?;
                out = std::mem::take(close.get_mut());
            }
            Coding::Deflate(open, close) => {
                open.try_finish()?;
                rewriter.feed(&std::mem::take(open.get_mut()), &mut out);
                rewriter.finish(&mut out);
                close.write_all(&out)?;
                close.try_finish()?;
                out = std::mem::take(close.get_mut());
            }
        }
        Ok(out)
    }
}

impl http_body::Body for Page {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        loop {
            if self.rewriter.is_none() {
                return Poll::Ready(None);
            }
            let frame = ready!(Pin::new(&mut self.inner).poll_frame(context));
            let out = match frame {
                None => self.end(),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                // Trailers speak of the page as it was.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => self.piece(&data),
                    Err(_) => continue,
                },
            };
            match out {
                Err(error) => {
                    self.rewriter = None;
                    return Poll::Ready(Some(Err(error.into())));
                }
                Ok(out) if out.is_empty() => {}
                Ok(out) => return Poll::Ready(Some(Ok(Frame::data(out.into())))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::BodyExt;
    use proptest::prelude::*;
    use std::io::Read;

    fn links() -> Links {
        Links {
            base: "/api/v1/namespaces/n/services/s/proxy".into(),
            backend: "10.0.0.1:80".into(),
            asked: "localhost:8001".into(),
        }
    }

    #[test]
    fn only_links_to_the_backend_move() {
        let base = links().base;
        let cases = [
            ("/x", Some(format!("{base}/x"))),
            ("/x/../y/?q=/z#f", Some(format!("{base}/y/?q=/z#f"))),
            ("//10.0.0.1:80/x", Some(format!("{base}/x"))),
            ("http://10.0.0.1:80/x?y", Some(format!("{base}/x?y"))),
            (
                "http://localhost:8001/x",
                Some(format!("http://localhost:8001{base}/x")),
            ),
            ("http://10.0.0.1:80", None),
            ("http://other/x", None),
            ("x/y", None),
            ("#top", None),
            ("?q", None),
            ("", None),
            ("mailto:a@b", None),
            ("javascript:go(/x/)", None),
            (&format!("{base}/x"), None),
            ("/\u{1}x", None),
        ];
        for (link, expected) in cases {
            assert_eq!(links().rewritten(link), expected, "{link:?}");
        }
    }

    fn through(page: &str, size: usize) -> String {
        let mut rewriter = Rewriter {
            links: links(),
            held: Vec::new(),
            raw: None,
        };
        let mut out = Vec::new();
        for piece in page.as_bytes().chunks(size) {
            rewriter.feed(piece, &mut out);
        }
        rewriter.finish(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn pages_keep_all_bytes_but_those_of_links() {
        let base = links().base;
        let cases = [
            ("<a href=\"/x\">/x</a>", format!("<a href=\"{base}/x\">/x</a>")),
            ("<A  HREF = '/x' b>", format!("<A  HREF = '{base}/x' b>")),
            ("<img src=/x alt=y>", format!("<img src={base}/x alt=y>")),
            ("<div href=\"/x\">", "<div href=\"/x\">".into()),
            ("<!-- <a href=\"/x\"> -->", "<!-- <a href=\"/x\"> -->".into()),
            (
                "<script>'<a href=\"/x\">'</script><a href=\"/y\">",
                format!("<script>'<a href=\"/x\">'</script><a href=\"{base}/y\">"),
            ),
            ("1 < 2 <", "1 < 2 <".into()),
            ("<a title='>' href=\"/x\">", format!("<a title='>' href=\"{base}/x\">")),
            ("<a href=\"/x", "<a href=\"/x".into()),
            ("<link/href=/x>", format!("<link/href={base}/x>")),
            ("<!doctype html><a href=/>", format!("<!doctype html><a href={base}/>")),
        ];
        for (page, expected) in cases {
            for size in [1, 2, 3, 7, 1000] {
                assert_eq!(through(page, size), expected, "{page:?} in pieces of {size}");
            }
        }
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter_and_nothing_panics(page in "[<>a-c/='\" !-]{0,80}", size in 1usize..9) {
            prop_assert_eq!(through(&page, size), through(&page, 10_000));
        }
    }

    #[tokio::test]
    async fn packed_pages_are_opened_and_packed_again() {
        let text = "<a href=\"/x\">".repeat(10_000);
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(text.as_bytes()).unwrap();
        let body = page(packed.finish().unwrap().into(), links(), "gzip").unwrap();
        let bytes = body.collect().await.unwrap().to_bytes();
        let mut out = String::new();
        flate2::read::GzDecoder::new(&bytes[..])
            .read_to_string(&mut out)
            .unwrap();
        assert_eq!(out, format!("<a href=\"{}/x\">", links().base).repeat(10_000));
        assert!(page(Body::Empty, links(), "br").is_err());
        let garbage = page(Body::from("not gzip"), links(), "gzip").unwrap();
        assert!(garbage.collect().await.is_err());
    }

    #[test]
    fn a_tag_without_an_end_is_not_held_for_ever() {
        let long = format!("<a href=\"/x{}", "y".repeat(MAX_TAG * 3));
        assert_eq!(through(&long, 1000), long);
    }
}
