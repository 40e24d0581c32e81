//! Named formats: `format.dns1123Label().validate(text)`.

use base64::Engine;
use sampan_api::names;

use crate::error::EvalError;
use crate::functions::{Cost, Row};
use crate::library::opaque::{Opaque, value};
use crate::time;
use crate::value::Value;

pub struct NamedFormat {
    pub(crate) name: &'static str,
    check: fn(&str) -> Vec<String>,
    /// What its pattern is taken to cost.
    pub(crate) pattern: u64,
}

fn said(right: bool, why: &str) -> Vec<String> {
    if right { Vec::new() } else { vec![why.to_owned()] }
}

fn is_uuid(text: &str) -> bool {
    let text = text.replace('-', "");
    text.len() == 32 && text.bytes().all(|c| c.is_ascii_hexdigit())
}

const FORMATS: &[NamedFormat] = &[
    NamedFormat {
        name: "dns1123Label",
        check: |text| names::name_is_dns_label(text, false),
        pattern: 30,
    },
    NamedFormat {
        name: "dns1123Subdomain",
        check: |text| names::name_is_dns_subdomain(text, false),
        pattern: 60,
    },
    NamedFormat {
        name: "dns1035Label",
        check: |text| names::name_is_dns1035_label(text, false),
        pattern: 30,
    },
    NamedFormat {
        name: "qualifiedName",
        check: names::qualified_name,
        pattern: 60,
    },
    NamedFormat {
        name: "dns1123LabelPrefix",
        check: |text| names::name_is_dns_label(text, true),
        pattern: 30,
    },
    NamedFormat {
        name: "dns1123SubdomainPrefix",
        check: |text| names::name_is_dns_subdomain(text, true),
        pattern: 60,
    },
    NamedFormat {
        name: "dns1035LabelPrefix",
        check: |text| names::name_is_dns1035_label(text, true),
        pattern: 30,
    },
    NamedFormat {
        name: "labelValue",
        check: names::label_value,
        pattern: 40,
    },
    NamedFormat {
        name: "uri",
        check: |text| {
            let right = text.starts_with('/') || url::Url::parse(text).is_ok();
            if right {
                Vec::new()
            } else {
                vec![format!("parse {text:?}: invalid URI for request")]
            }
        },
        pattern: 1000,
    },
    NamedFormat {
        name: "uuid",
        check: |text| said(is_uuid(text), "does not match the UUID format"),
        pattern: 80,
    },
    NamedFormat {
        name: "byte",
        check: |text| {
            let right = base64::engine::general_purpose::STANDARD.decode(text).is_ok();
            said(right, "invalid base64")
        },
        pattern: 84,
    },
    NamedFormat {
        name: "date",
        check: |text| said(time::parse_date(text).is_some(), "invalid date"),
        pattern: 120,
    },
    NamedFormat {
        name: "datetime",
        check: |text| said(time::parse_timestamp(text).is_some(), "invalid datetime"),
        pattern: 120,
    },
];

macro_rules! constants {
    ($($name:literal),*) => {
        &[
            $((concat!("format.", $name), &["() Format"], Cost::Fixed(1), |_, _| named($name).ok_or_else(EvalError::no_overload)),)*
            ("format.named", &["(string) optional(Format)"], Cost::Fixed(1), |_, args| match args {
                [Value::String(name)] => Ok(Value::Optional(named(name).map(Into::into))),
                _ => Err(EvalError::no_overload()),
            }),
            ("validate", &["Format.(string) optional(list(string))"], Cost::Validate, |_, args| {
                let [Value::Opaque(opaque), Value::String(text)] = args else {
                    return Err(EvalError::no_overload());
                };
                let Opaque::Format(format) = &**opaque else {
                    return Err(EvalError::no_overload());
                };
                let wrong = (format.check)(text);
                if wrong.is_empty() {
                    return Ok(Value::Optional(None));
                }
                Ok(Value::some(Value::list(wrong.into_iter().map(Value::string).collect())))
            }),
        ]
    };
}

pub(crate) const ROWS: &[Row] = constants!(
    "dns1123Label",
    "dns1123Subdomain",
    "dns1035Label",
    "qualifiedName",
    "dns1123LabelPrefix",
    "dns1123SubdomainPrefix",
    "dns1035LabelPrefix",
    "labelValue",
    "uri",
    "uuid",
    "byte",
    "date",
    "datetime"
);

fn named<'a>(name: &str) -> Option<Value<'a>> {
    let format: &'static NamedFormat = FORMATS.iter().find(|format| format.name == name)?;
    Some(value(Opaque::Format(format)))
}
