//! The fuzzers' targets on a bounded run: well-formed examples, bent at random.
//!
//! `SAMPAN_FUZZ=100000` makes the run longer (bent inputs per target), `SAMPAN_FUZZ_SEED` repeats one. The same
//! targets run under cargo-fuzz from `fuzz/`.

#[path = "fuzz/targets.rs"]
mod targets;

use std::panic::catch_unwind;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const EXAMPLES: &[&str] = &[
    r#"{"apiVersion":"apps/v1","kind":"Deployment","metadata":{"name":"web","labels":{"a":"1"}},"spec":{"replicas":2,"template":{"spec":{"containers":[{"name":"a","image":"x","ports":[{"containerPort":80,"protocol":"TCP"}],"resources":{"limits":{"cpu":"0.5","memory":1e9}}}]}}}}"#,
    "apiVersion: apps/v1\nkind: Deployment\nmetadata: &m\n  name: web\n  annotations: {a: 'yes', b: \"1\", c: |\n    text\n  }\nspec:\n  replicas: 0x10\n  paused: on\n  template: {metadata: *m, spec: {containers: [{name: a, image: x}, {name: b}]}}\n",
    r#"[{"op":"add","path":"/spec/template/spec/containers/-","value":{"name":"c"}},{"op":"move","from":"/spec/replicas","path":"/metadata/labels/b~1c"},{"op":"copy","from":"/spec","path":"/spec/copy"},{"op":"test","path":"/kind","value":"Deployment"},{"op":"remove","path":"/metadata/finalizers/-1"}]"#,
    r#"{"spec":{"template":{"spec":{"$setElementOrder/containers":[{"name":"b"},{"name":"a"}],"containers":[{"name":"a","$patch":"delete"},{"name":"b","image":"z","env":[{"name":"E","value":null}]}],"volumes":[{"$patch":"replace"},{"name":"w","hostPath":{"path":"/"}}],"$retainKeys":["containers"]}}},"metadata":{"$deleteFromPrimitiveList/finalizers":["a/b"],"labels":{"a":null,"$patch":"replace"}}}"#,
    r#"{"metadata":{"name":"web","managedFields":[{"manager":"x","operation":"Update","apiVersion":"apps/v1","time":"2026-01-01T00:00:00Z","fieldsType":"FieldsV1","fieldsV1":{"f:spec":{".":{},"f:replicas":{},"f:template":{"f:spec":{"f:containers":{"k:{\"name\":\"a\"}":{".":{},"f:image":{}}}}}},"f:metadata":{"f:finalizers":{"v:\"a/b\"":{}},"f:x":{"i:3":{}}}}}]},"spec":{"replicas":3}}"#,
    r#"{"type":"object","properties":{"apiVersion":{"type":"string"},"spec":{"type":"object","x-kubernetes-preserve-unknown-fields":true,"properties":{"list":{"type":"array","x-kubernetes-list-type":"map","x-kubernetes-list-map-keys":["name"],"items":{"type":"object","required":["name"],"properties":{"name":{"type":"string","default":"x"}}}},"port":{"x-kubernetes-int-or-string":true,"anyOf":[{"type":"integer"},{"type":"string"}]}}}}}"#,
    "a=b,c!=d,e in (f,g),h notin (),!i,j>1,k<2",
    "metadata.name=x,status.phase!=Running,a=b\\,c\\=d\\\\",
    "1234.5678901234567890e-12",
    "-0.000000000000000001Ei",
    "9223372036854775807",
    "2026-11-22T10:11:12.123456789+05:30",
    "{\"matchLabels\":{\"a\":\"b\"},\"matchExpressions\":[{\"key\":\"c\",\"operator\":\"In\",\"values\":[\"d\"]}]}",
    "a: &a [x,x,x]\nb: &b [*a,*a,*a]\nc: &c [*b,*b,*b]\nd: [*c,*c,*c]\n",
    "\n\u{e}\n\u{2}v1\u{12}\u{3}Pod\u{12}\u{20}\n\u{8}\n\u{1}p\u{12}\u{0}\u{1a}\u{0}\u{12}\u{12}\u{12}\u{10}\n\u{1}a\u{12}\u{1}x2\u{0}:\u{0}B\u{2}\n\u{0}\u{1a}\u{0}\"\u{0}",
];

/// Fragments that decoders trip over.
const NASTY: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    ":",
    ",",
    "null",
    "true",
    "-0",
    "1e999",
    "1e-999",
    "18446744073709551616",
    "9223372036854775808",
    "-9223372036854775809",
    "\\u0000",
    "\\ud800",
    "\u{feff}",
    "\r\n",
    "\t",
    "&a ",
    "*a ",
    "<<: ",
    "!!binary ",
    "!!str ",
    "? ",
    "- ",
    "--- ",
    "...\n",
    "%YAML 1.1\n",
    "~",
    ".inf",
    ".nan",
    "0o7",
    "0x",
    "1_0",
    "\0",
    "$patch",
    "delete",
    "replace",
    "merge",
    "/-",
    "/~1",
    "~0",
    "-1",
    "99999999999999999999",
    "k:{}",
    "v:",
    "i:-1",
    "f:",
];

fn bend(random: &mut StdRng, bytes: &mut Vec<u8>) {
    const LONGEST: usize = 8 << 10;
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=bytes.len());
        match random.random_range(0..9) {
            0 if at < bytes.len() => bytes[at] ^= 1 << random.random_range(0..8),
            1 if at < bytes.len() => bytes[at] = random.random(),
            2 => bytes.truncate(at),
            3 => {
                let end = (at + random.random_range(0..16)).min(bytes.len());
                bytes.drain(at..end);
            }
            4 => {
                let end = (at + random.random_range(0..64)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = random.random_range(0..=bytes.len());
                bytes.splice(to..to, piece);
            }
            5 => {
                let other = EXAMPLES[random.random_range(0..EXAMPLES.len())].as_bytes();
                let from = random.random_range(0..other.len());
                let end = (from + random.random_range(0..64)).min(other.len());
                bytes.splice(at..at, other[from..end].iter().copied());
            }
            6 => {
                let many = [1, 2, 64, 300][random.random_range(0..4)];
                let piece = NASTY[random.random_range(0..NASTY.len())];
                bytes.splice(at..at, piece.repeat(many).into_bytes());
            }
            _ => {
                let piece = NASTY[random.random_range(0..NASTY.len())];
                bytes.splice(at..at, piece.bytes());
            }
        }
        bytes.truncate(LONGEST);
    }
}

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(otherwise)
}

#[test]
fn bent_examples_are_answered_or_refused() {
    let rounds = number("SAMPAN_FUZZ", 300);
    let seed = number("SAMPAN_FUZZ_SEED", rand::random());
    let only = std::env::var("SAMPAN_FUZZ_TARGET").unwrap_or_default();
    let mut failures = Vec::new();
    for (name, target) in targets::ALL.iter().filter(|(name, _)| only.is_empty() || only == *name) {
        let mut random = StdRng::seed_from_u64(seed);
        for round in 0..rounds {
            let mut bytes = EXAMPLES[random.random_range(0..EXAMPLES.len())].as_bytes().to_vec();
            if round >= EXAMPLES.len() as u64 {
                bend(&mut random, &mut bytes);
            } else if let Some(example) = EXAMPLES.get(round as usize) {
                bytes = example.as_bytes().to_vec();
            }
            if catch_unwind(|| target(&bytes)).is_err() {
                failures.push(format!("{name}: {:?}", String::from_utf8_lossy(&bytes)));
                if failures.len() > 4 {
                    break;
                }
            }
        }
    }
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
}

/// Inputs that cost a careless reader its stack, its memory or its time.
#[test]
fn bombs_do_nothing() {
    let begun = std::time::Instant::now();
    let deep = |open: &str, close: &str, count: usize| format!("{}{}", open.repeat(count), close.repeat(count));
    let aliases = |levels: usize| {
        let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..levels {
            let below = format!("*a{}", level - 1);
            text.push_str(&format!("a{level}: &a{level} [{}]\n", vec![below; 10].join(",")));
        }
        text
    };
    let bombs: Vec<(&str, Vec<u8>)> = vec![
        ("deep lists", deep("[", "]", 100_000).into_bytes()),
        ("deep maps", deep("{\"a\":", "}", 100_000).into_bytes()),
        ("deep YAML", deep("[", "]", 5_000).into_bytes()),
        (
            "deep YAML block",
            (0..3_000)
                .map(|depth| format!("{}a:\n", " ".repeat(depth)))
                .collect::<String>()
                .into_bytes(),
        ),
        ("open lists", "[".repeat(1 << 20).into_bytes()),
        ("aliases", aliases(12).into_bytes()),
        (
            "merge keys",
            format!("a: &a {{x: 1}}\n{}", "b: {<<: *a}\n".repeat(2_000)).into_bytes(),
        ),
        ("long number", "9".repeat(1 << 20).into_bytes()),
        ("long exponent", b"1e-2147483648".to_vec()),
        ("long key", format!("{{\"{}\":1}}", "k".repeat(1 << 20)).into_bytes()),
        (
            "repeated keys",
            format!("{{{}\"a\":1}}", "\"a\":1,".repeat(20_000)).into_bytes(),
        ),
        ("invalid UTF-8", b"{\"a\":\"\xff\xfe\"}".to_vec()),
        ("half a surrogate", br#"{"a":"\ud800"}"#.to_vec()),
        ("many commas in a selector", "a=b,".repeat(50_000).into_bytes()),
        ("a long set", format!("a in ({})", "b,".repeat(50_000)).into_bytes()),
        (
            "many operations",
            format!(
                "[{}{{}}]",
                "{\"op\":\"test\",\"path\":\"/kind\",\"value\":\"Deployment\"},".repeat(10_001)
            )
            .into_bytes(),
        ),
        (
            "doubling copies",
            format!(
                "[{}]",
                vec![r#"{"op":"copy","from":"/spec","path":"/spec/x"}"#; 60].join(",")
            )
            .into_bytes(),
        ),
    ];
    for (what, bytes) in &bombs {
        for (name, target) in targets::ALL {
            let one = std::time::Instant::now();
            target(bytes);
            if one.elapsed().as_millis() > 500 {
                eprintln!("{what}: {name} took {:?} for {} bytes", one.elapsed(), bytes.len());
            }
            assert!(
                one.elapsed().as_secs() < 60,
                "{what} held {name} up for {:?}",
                one.elapsed()
            );
        }
    }
    assert!(begun.elapsed().as_secs() < 300, "{:?}", begun.elapsed());
}
