//! Values to be looked for, in every form they might be written in.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What every canary contains, and nothing else does. The number of bytes keeps base64 at work in the middle.
const CORE: &str = "zKq7CANARYwvX3";

/// A value to be kept secret.
pub fn canary(name: &str) -> String {
    format!("{name}.{CORE}.{name}")
}

/// The same in base64, as Secrets hold it.
pub fn canary64(name: &str) -> String {
    base64(canary(name).as_bytes())
}

pub fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let mut group = [0u8; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let number = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for digit in 0..4 {
            let index = (number >> (18 - 6 * digit)) & 63;
            text.push(if digit > chunk.len() {
                '='
            } else {
                ALPHABET[index as usize] as char
            });
        }
    }
    text
}

/// What is base64 of these bytes.
pub fn decoded(text: &str) -> Vec<u8> {
    let mut bits = 0u32;
    let mut have = 0;
    let mut bytes = Vec::new();
    for digit in text.bytes().filter(|&digit| digit != b'=') {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        bits = (bits << 6 | u32::from(value)) & 0xffff;
        have += 6;
        if have >= 8 {
            have -= 8;
            bytes.push((bits >> have) as u8);
        }
    }
    bytes
}

/// Looks for values in texts, files and directories.
pub struct Search {
    needles: Vec<(String, Vec<u8>)>,
    pub found: Vec<String>,
    pub bytes: usize,
}

impl Search {
    /// For all canaries.
    pub fn new() -> Search {
        let mut search = Search {
            needles: Vec::new(),
            found: Vec::new(),
            bytes: 0,
        };
        search.add("a canary", CORE);
        search
    }

    /// Looks for this value, too, however it is encoded.
    pub fn add(&mut self, what: &str, value: &str) {
        assert!(value.len() > 10, "{what}: {value:?} is too short to be looked for");
        self.needles.push((what.to_owned(), value.into()));
        for shift in 0..3 {
            let mut padded = vec![b'.'; shift];
            padded.extend(value.as_bytes());
            let text = base64(&padded);
            // The digits that depend on what is before and behind it are left out.
            let from = (shift * 8).div_ceil(6);
            let whole = (padded.len() * 8) / 6;
            self.needles
                .push((format!("{what} in base64"), text[from..whole].into()));
        }
        let hex: String = value.bytes().map(|byte| format!("{byte:02x}")).collect();
        self.needles.push((format!("{what} in hexadecimal"), hex.into()));
        let bytes: Vec<_> = value.bytes().map(|byte| byte.to_string()).collect();
        self.needles.push((format!("{what} as bytes"), bytes.join(", ").into()));
        let reversed: String = value.chars().rev().collect();
        self.needles.push((format!("{what} reversed"), reversed.into()));
    }

    pub fn bytes(&mut self, place: &str, content: &[u8]) {
        self.bytes += content.len();
        for (what, needle) in &self.needles {
            if let Some(at) = find(content, needle) {
                let from = at.saturating_sub(160);
                let around = &content[from..(at + needle.len() + 40).min(content.len())];
                self.found
                    .push(format!("{place}: {what}: …{}…", String::from_utf8_lossy(around)));
            }
        }
    }

    pub fn text(&mut self, place: &str, text: &str) {
        assert!(!text.is_empty(), "there is nothing to look at in {place}");
        self.bytes(place, text.as_bytes());
    }

    /// All files below, but those that `skip` knows a reason for. Also the names of files, and where links lead.
    pub fn directory(&mut self, dir: &Path, skip: &dyn Fn(&Path) -> bool) {
        for path in walk(dir) {
            self.bytes(&format!("the name {}", path.display()), path.as_os_str().as_bytes());
            if skip(&path) {
                continue;
            }
            let Ok(kind) = fs::symlink_metadata(&path) else {
                continue;
            };
            if kind.is_symlink() {
                let target = fs::read_link(&path).unwrap_or_default();
                self.bytes(&path.display().to_string(), target.as_os_str().as_bytes());
            } else if kind.is_file()
                && let Ok(content) = fs::read(&path)
            {
                self.bytes(&path.display().to_string(), &content);
            }
        }
    }

    #[track_caller]
    pub fn must_be_clean(&self) {
        assert!(
            self.found.is_empty(),
            "{} finds:\n{}",
            self.found.len(),
            self.found.join("\n\n")
        );
        eprintln!("looked at {} kB", self.bytes / 1000);
    }
}

/// memchr's, in a few lines: the first byte is rare enough.
fn find(content: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    while let Some(at) = content[from..].iter().position(|&byte| byte == first) {
        if content[from + at..].starts_with(needle) {
            return Some(from + at);
        }
        from += at + 1;
    }
    None
}

/// Everything below a directory, itself included; links are not followed.
pub fn walk(dir: &Path) -> Vec<PathBuf> {
    let mut all = vec![dir.to_owned()];
    let mut next = 0;
    while let Some(path) = all.get(next).cloned() {
        next += 1;
        if fs::symlink_metadata(&path).is_ok_and(|kind| kind.is_dir()) {
            all.extend(
                fs::read_dir(&path)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path()),
            );
        }
    }
    all
}

#[test]
fn what_is_looked_for_is_found() {
    assert_eq!(base64(b"a"), "YQ==");
    assert_eq!(base64(b"ab"), "YWI=");
    assert_eq!(base64(b"abc\xff"), "YWJj/w==");
    for before in ["", "a", "ab", "abc"] {
        let text = base64(format!("{before}{}", canary("x")).as_bytes());
        let mut search = Search::new();
        search.bytes("here", text.as_bytes());
        assert_eq!(search.found.len(), 1, "{before}: {text}");
    }
    let mut search = Search::new();
    search.bytes("here", format!("{:?}", canary("x").as_bytes()).as_bytes());
    search.bytes("there", canary("y").as_bytes());
    search.bytes("nowhere", b"zKq7CANARYwvX");
    assert_eq!(search.found.len(), 2);
}
