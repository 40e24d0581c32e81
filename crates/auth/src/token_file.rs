//! The file of static tokens: CSV lines `token,user,uid[,"group1,group2"]`, as upstream's `--token-auth-file`.
//!
//! Read as strictly as upstream reads it: a quote that is not closed or stands in the middle of a plain field is an
//! error, for what it would make of the rest of the file. Lines without a token are passed over, with a warning.

use crate::user::UserInfo;

/// The tokens of a file and whom they name.
pub fn parse(content: &str) -> Result<Vec<(String, UserInfo)>, String> {
    let mut tokens: Vec<(String, UserInfo)> = Vec::new();
    for (line, record) in records(content)? {
        let mut fields = record.into_iter();
        let count = fields.len();
        let (Some(token), Some(name), Some(uid)) = (fields.next(), fields.next(), fields.next()) else {
            return Err(format!(
                "line {line}: token file must have at least 3 columns (token, user name, user uid), found {count}"
            ));
        };
        if token.is_empty() {
            tracing::warn!(line, "an empty token in the token file is passed over");
            continue;
        }
        let groups = fields.next().unwrap_or_default();
        let groups = groups.split(',').map(str::trim).filter(|group| !group.is_empty());
        let user = UserInfo {
            uid,
            ..UserInfo::new(name, groups)
        };
        if let Some(known) = tokens.iter_mut().find(|(known, _)| *known == token) {
            tracing::warn!(
                line,
                user = user.name,
                "a token stands twice in the token file; the last counts"
            );
            known.1 = user;
        } else {
            tokens.push((token, user));
        }
    }
    Ok(tokens)
}

/// The records with the lines they begin at.
fn records(content: &str) -> Result<Vec<(usize, Vec<String>)>, String> {
    let mut records = Vec::new();
    let mut chars = content.chars().peekable();
    let mut line = 1;
    while chars.peek().is_some() {
        let begin = line;
        let mut record = Vec::new();
        loop {
            while chars.next_if(|c| *c == ' ' || *c == '\t').is_some() {}
            let mut field = String::new();
            let quoted = chars.next_if_eq(&'"').is_some();
            if quoted {
                loop {
                    match chars.next() {
                        Some('"') if chars.next_if_eq(&'"').is_some() => field.push('"'),
                        Some('"') => break,
                        Some(c) => {
                            line += usize::from(c == '\n');
                            field.push(c);
                        }
                        None => return Err(format!("line {begin}: a quoted field is not closed")),
                    }
                }
            } else {
                while let Some(c) = chars.next_if(|c| !matches!(c, ',' | '\n')) {
                    if c == '"' {
                        return Err(format!("line {line}: bare \" in a field that is not quoted"));
                    }
                    field.push(c);
                }
                field.truncate(field.trim_end().len());
            }
            record.push(field);
            chars.next_if_eq(&'\r');
            match chars.next() {
                Some(',') => {}
                Some('\n') => {
                    line += 1;
                    break;
                }
                None => break,
                Some(_) => return Err(format!("line {line}: extraneous text after a quoted field")),
            }
        }
        let blank = matches!(record.as_slice(), [only] if only.is_empty());
        let comment = record.first().is_some_and(|first| first.starts_with('#'));
        if !blank && !comment {
            records.push((begin, record));
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn upstreams_files_are_read() {
        let file = "# people\n\nsecret,jane,7,\"devs, ops\"\r\nother, joe ,8\n\"a,b\"\"c\",\"multi\nline\",9,one\n,nobody,1\nother,jim,10\n";
        let tokens = parse(file).unwrap();
        let shown: Vec<_> = tokens
            .iter()
            .map(|(token, user)| format!("{token}|{}|{}|{}", user.name, user.uid, user.groups.join(" ")))
            .collect();
        assert_eq!(
            shown,
            [
                "secret|jane|7|devs ops system:authenticated",
                "other|jim|10|system:authenticated",
                "a,b\"c|multi\nline|9|one system:authenticated",
            ]
        );
    }

    #[test]
    fn wrong_files_are_refused() {
        for (file, why) in [
            ("just-a-token", "line 1: token file must have at least 3 columns"),
            ("a,b,c\n\nd,e\n", "line 3: token file must have at least 3 columns"),
            ("a,b\"c,d", "bare \""),
            ("a,\"b,c", "not closed"),
            ("a,\"b\"c,d", "extraneous"),
        ] {
            let found = parse(file).unwrap_err();
            assert!(found.contains(why), "{found}");
        }
    }

    proptest! {
        #[test]
        fn no_file_breaks_it(content in "[a,\"\r\n #\u{e4}]{0,40}") {
            let _read = parse(&content);
        }
    }
}
