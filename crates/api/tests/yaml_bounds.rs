//! What YAML costs: time and memory of bodies that are large, deep, or small and meant to grow.
//!
//! Every case is read in a process of its own, so that its peak of memory is its own. Figures are printed; what is
//! asserted is generous: an optimised build is ten to thirty times as fast as the tests' own.
//!
//!     cargo test --release -p sampan-api --test yaml_bounds -- --nocapture

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use sampan_api::codec::{json, yaml};

/// What the API server reads at most.
const LARGEST: usize = 3 << 20;

/// A list of lists of lists, each ten times the one before.
fn laughs(levels: usize) -> String {
    let mut text = String::from("a0: &a0 [ha, ha, ha, ha, ha, ha, ha, ha, ha, ha]\n");
    for level in 1..levels {
        let below = vec![format!("*a{}", level - 1); 10].join(", ");
        let _ = writeln!(text, "a{level}: &a{level} [{below}]");
    }
    text
}

/// A ConfigMap of so many bytes in lines.
fn config_map(size: usize) -> String {
    let mut text = String::from("apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: big\ndata:\n");
    for number in 0.. {
        if text.len() >= size {
            break;
        }
        let _ = writeln!(text, "  key-{number}: some text of a usual length, number {number}");
    }
    text
}

/// A custom object as people have them: nested, mostly short lines.
fn nested(size: usize) -> String {
    let mut text = String::from("apiVersion: example.com/v1\nkind: Thing\nmetadata: {name: big}\nspec:\n  items:\n");
    for number in 0.. {
        if text.len() >= size {
            break;
        }
        let _ = write!(
            text,
            "  - name: item-{number}\n    ports: [80, 443]\n    env:\n    - {{name: A, value: \"{number}\"}}\n    on: true\n"
        );
    }
    text
}

/// Whether it is to be read.
#[derive(PartialEq)]
enum Expect {
    Read,
    Refused,
    /// Either; what matters is what it costs.
    Any,
}

/// A body, made when it is its turn.
type Text = Box<dyn Fn() -> String>;

fn text(make: impl Fn() -> String + 'static) -> Text {
    Box::new(make)
}

fn deep(depth: usize) -> Text {
    text(move || (0..depth).map(|depth| format!("{}a:\n", " ".repeat(depth))).collect())
}

fn lines(line: &'static str, size: usize) -> Text {
    text(move || line.repeat(size / line.len()))
}

fn cases() -> Vec<(&'static str, Expect, Text)> {
    use Expect::{Any, Read, Refused};
    vec![
        ("nothing", Any, text(String::new)),
        ("1 MB of a ConfigMap", Read, text(|| config_map(1_000_000))),
        ("1 MB of a custom object", Read, text(|| nested(1_000_000))),
        ("3 MB of a custom object", Read, text(|| nested(LARGEST))),
        ("3 MB of shortest lines", Refused, lines("- a\n", LARGEST)),
        (
            "3 MB of empty lists",
            Refused,
            text(|| format!("[{}[]]", "[],".repeat(LARGEST / 3 - 2))),
        ),
        (
            "3 MB in one flow list",
            Refused,
            text(|| format!("[{}a]", "a,".repeat(LARGEST / 2 - 2))),
        ),
        (
            "3 MB in one plain scalar",
            Read,
            text(|| format!("a: {}", "x".repeat(LARGEST))),
        ),
        (
            "3 MB in one quoted scalar",
            Read,
            text(|| format!("a: \"{}\"", "x\\n".repeat(LARGEST / 3))),
        ),
        (
            "3 MB in one block scalar",
            Read,
            text(|| format!("a: |\n{}", "  some text\n".repeat(LARGEST / 12))),
        ),
        (
            "3 MB of JSON",
            Read,
            text(|| format!("{{\"a\":[{}1]}}", "{\"key\":\"value\"},".repeat(LARGEST / 16))),
        ),
        (
            "3 MB of one key",
            Refused,
            text(|| format!("{}: a", "x".repeat(LARGEST))),
        ),
        ("3 MB of blanks", Any, lines(" ", LARGEST)),
        ("3 MB of comments", Any, lines("# nothing\n", LARGEST)),
        ("3 MB of open lists", Refused, lines("[", LARGEST)),
        ("3 MB of open maps", Refused, lines("{a: ", LARGEST)),
        ("3 MB of dashes", Refused, lines("- ", LARGEST)),
        ("3 MB of questions", Refused, lines("? ", LARGEST)),
        ("3 MB of possible keys", Any, lines("{a b c d e f g h\n", LARGEST)),
        ("60 levels", Read, deep(60)),
        ("2,000 levels", Refused, deep(2_000)),
        (
            "60 levels of lists",
            Read,
            text(|| format!("{}{}", "[".repeat(60), "]".repeat(60))),
        ),
        ("a laugh", Read, text(|| laughs(3))),
        ("a million laughs", Refused, text(|| laughs(6))),
        ("billion laughs", Refused, text(|| laughs(9))),
        ("quintillion laughs", Refused, text(|| laughs(18))),
        (
            "a thousand aliases",
            Read,
            text(|| format!("a: &a [x, y]\nb: [{}]", (0..90).map(|_| "*a, ").collect::<String>())),
        ),
        (
            "aliases of a long text",
            Refused,
            text(|| format!("a: &a {}\nb: [{}]", "x".repeat(1_500_000), "*a, ".repeat(90))),
        ),
        (
            "many aliases",
            Refused,
            text(|| format!("a: &a {}\nb: [{}]", "x".repeat(100_000), "*a, ".repeat(700_000))),
        ),
        (
            "aliases of a long list",
            Refused,
            text(|| format!("a: &a [{}]\nb: [{}]", "x, ".repeat(900_000), "*a, ".repeat(90))),
        ),
        ("anchors", Any, lines("- &a a\n", LARGEST)),
        (
            "nested anchors",
            Refused,
            text(|| {
                format!(
                    "{}{}{}",
                    "&a [".repeat(50),
                    "x,".repeat(LARGEST / 2 - 1000),
                    "]".repeat(50)
                )
            }),
        ),
        (
            "merged maps",
            Any,
            text(|| {
                let keys: String = (0..500).map(|number| format!("k{number}: 1, ")).collect();
                format!("a: &a {{{keys}}}\n{}", "b: {<<: *a}\n".repeat(9_000))
            }),
        ),
        ("repeated keys", Any, lines("a: 1\n", LARGEST)),
        ("documents", Refused, lines("--- a\n", LARGEST)),
        ("tags", Any, lines("- !!str a\n", LARGEST)),
        ("a long number", Any, text(|| format!("a: {}", "9".repeat(LARGEST)))),
    ]
}

/// The most memory this process has had, in kB.
fn peak() -> Option<usize> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// What this process has computed, in milliseconds: other than the time that passes it is not a matter of how busy the
/// machine is.
fn computed() -> Option<u64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let after = stat.rsplit_once(')')?.1;
    let mut fields = after.split_whitespace().skip(11);
    let (user, system): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    Some((user + system) * 10)
}

/// One case in this process, if it is told which.
#[test]
fn one_case() {
    let Some(wanted) = std::env::var("SAMPAN_YAML_CASE")
        .ok()
        .and_then(|case| case.parse::<usize>().ok())
    else {
        return;
    };
    let text = cases().swap_remove(wanted).2();
    let before = peak().unwrap_or_default();
    let (begun, computing) = (Instant::now(), computed());
    let answer = yaml::decode(text.as_bytes());
    let passed = begun.elapsed().as_millis() as u64;
    let took = computed()
        .zip(computing)
        .map_or(passed, |(after, before)| after - before);
    let after = peak().unwrap_or_default();
    let told = match &answer {
        Ok(parsed) => format!("read {}", json::encode(&parsed.object).len()),
        Err(error) => format!("refused {}", error.to_string().chars().take(90).collect::<String>()),
    };
    println!("CASE\t{}\t{}\t{told}", took, after.saturating_sub(before));
}

#[test]
fn costs_are_bounded() {
    let slow = if cfg!(debug_assertions) { 30 } else { 1 };
    let mut wrong = Vec::new();
    for (number, (name, expect, text)) in cases().into_iter().enumerate() {
        let size = text().len();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "one_case", "--nocapture", "--test-threads=1"])
            .env("SAMPAN_YAML_CASE", number.to_string())
            .output()
            .unwrap();
        let out = String::from_utf8_lossy(&output.stdout);
        let Some(line) = out
            .lines()
            .find_map(|line| line.split_once("CASE\t").map(|(_, rest)| rest))
        else {
            wrong.push(format!("{name}: died with {}: {out}", output.status));
            continue;
        };
        let mut parts = line.splitn(3, '\t');
        let took = Duration::from_millis(parts.next().and_then(|part| part.parse().ok()).unwrap_or(u64::MAX / 2));
        let memory: usize = parts
            .next()
            .and_then(|part| part.parse().ok())
            .unwrap_or(usize::MAX / 2);
        let told = parts.next().unwrap_or_default();
        eprintln!(
            "{name:>30}: {:>8} kB in, {took:>8.2?}, {memory:>7} kB more, {told}",
            size / 1000
        );
        let read = told.starts_with("read");
        if read && expect == Expect::Refused || !read && expect == Expect::Read {
            wrong.push(format!("{name}: {told}"));
        }
        if took > Duration::from_secs(3) * slow {
            wrong.push(format!("{name}: took {took:?}"));
        }
        // Memory is a matter of the body: a tree of it, and what the parser holds meanwhile.
        if memory > 400_000 {
            wrong.push(format!("{name}: took {memory} kB"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
