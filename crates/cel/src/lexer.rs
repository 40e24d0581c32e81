//! Text into tokens. Positions are in characters, as messages count them.

use crate::ast::Literal;
use crate::error::Issue;

#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Token {
    Ident(String),
    Literal(LiteralToken),
    Symbol(&'static str),
    End,
}

/// A literal whose number is not read yet: whether a minus precedes it decides whether it fits.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum LiteralToken {
    Int(String),
    Uint(String),
    Double(String),
    String(String),
    Bytes(Vec<u8>),
}

#[derive(Clone, Debug)]
pub(crate) struct Spanned {
    pub token: Token,
    pub at: u32,
    /// As it was written.
    pub text: String,
}

const SYMBOLS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":", "+", "*",
    "/", "%",
];

pub(crate) fn tokenize(source: &str) -> (Vec<Spanned>, Vec<Issue>) {
    let mut lexer = Lexer {
        chars: source.chars().collect(),
        at: 0,
        issues: Vec::new(),
    };
    let mut tokens = Vec::new();
    while let Some(token) = lexer.next() {
        let end = token.token == Token::End;
        tokens.push(token);
        if end {
            break;
        }
    }
    (tokens, lexer.issues)
}

struct Lexer {
    chars: Vec<char>,
    at: usize,
    issues: Vec<Issue>,
}

impl Lexer {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.at + ahead).copied()
    }

    fn text(&self, from: usize) -> String {
        self.chars.get(from..self.at).unwrap_or_default().iter().collect()
    }

    fn next(&mut self) -> Option<Spanned> {
        loop {
            self.blanks();
            let start = self.at;
            let Some(c) = self.peek(0) else {
                return Some(Spanned {
                    token: Token::End,
                    at: start as u32,
                    text: "<EOF>".to_owned(),
                });
            };
            let token = if c.is_ascii_digit() || (c == '.' && self.peek(1).is_some_and(|c| c.is_ascii_digit())) {
                Some(self.number())
            } else if let Some((raw, bytes, prefix)) = self.string_start() {
                self.string(raw, bytes, prefix)
            } else if c.is_ascii_alphabetic() || c == '_' {
                while self.peek(0).is_some_and(|c| c.is_ascii_alphanumeric() || c == '_') {
                    self.at += 1;
                }
                Some(Token::Ident(self.text(start)))
            } else {
                self.symbol()
            };
            match token {
                Some(token) => {
                    return Some(Spanned {
                        token,
                        at: start as u32,
                        text: self.text(start),
                    });
                }
                None => {
                    if self.at == start {
                        self.at += 1;
                    }
                    let wrong: String = self.text(start);
                    // ANTLR shows what it had read when it gave up, with the character that made it.
                    let next: String = if matches!(wrong.as_str(), "=" | "&" | "|") {
                        self.peek(0).into_iter().collect()
                    } else {
                        String::new()
                    };
                    self.issues.push(Issue::new(
                        start as u32,
                        format!("Syntax error: token recognition error at: '{wrong}{next}'"),
                    ));
                    if self.issues.len() > 30 {
                        self.at = self.chars.len();
                    }
                }
            }
        }
    }

    fn blanks(&mut self) {
        while let Some(c) = self.peek(0) {
            if matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{c}') {
                self.at += 1;
            } else if c == '/' && self.peek(1) == Some('/') {
                while self.peek(0).is_some_and(|c| c != '\n') {
                    self.at += 1;
                }
            } else {
                return;
            }
        }
    }

    fn symbol(&mut self) -> Option<Token> {
        let two: String = [self.peek(0), self.peek(1)].into_iter().flatten().collect();
        let symbol = SYMBOLS.iter().find(|symbol| two.starts_with(**symbol))?;
        self.at += symbol.len();
        Some(Token::Symbol(symbol))
    }

    fn digits(&mut self, is: impl Fn(char) -> bool) {
        while self.peek(0).is_some_and(&is) {
            self.at += 1;
        }
    }

    fn number(&mut self) -> Token {
        let start = self.at;
        let mut double = false;
        if self.peek(0) == Some('0') && self.peek(1) == Some('x') && self.peek(2).is_some_and(|c| c.is_ascii_hexdigit())
        {
            self.at += 2;
            self.digits(|c| c.is_ascii_hexdigit());
        } else {
            self.digits(|c| c.is_ascii_digit());
            if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
                double = true;
                self.at += 1;
                self.digits(|c| c.is_ascii_digit());
            }
            if matches!(self.peek(0), Some('e' | 'E')) {
                let sign = usize::from(matches!(self.peek(1), Some('+' | '-')));
                if self.peek(1 + sign).is_some_and(|c| c.is_ascii_digit()) {
                    double = true;
                    self.at += 1 + sign;
                    self.digits(|c| c.is_ascii_digit());
                }
            }
        }
        let text = self.text(start);
        if double {
            return Token::Literal(LiteralToken::Double(text));
        }
        if matches!(self.peek(0), Some('u' | 'U')) {
            self.at += 1;
            return Token::Literal(LiteralToken::Uint(text));
        }
        Token::Literal(LiteralToken::Int(text))
    }

    /// Whether a text begins here: raw, bytes, and how long the prefix is.
    fn string_start(&self) -> Option<(bool, bool, usize)> {
        let (mut raw, mut bytes) = (false, false);
        for ahead in 0..3 {
            match self.peek(ahead)? {
                '"' | '\'' => return Some((raw, bytes, ahead)),
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes && !raw => bytes = true,
                _ => return None,
            }
        }
        None
    }

    fn string(&mut self, raw: bool, bytes: bool, prefix: usize) -> Option<Token> {
        let begin = self.at;
        self.at += prefix;
        let quote = self.peek(0)?;
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        self.at += if triple { 3 } else { 1 };
        let mut out: Vec<u8> = Vec::new();
        let push = |out: &mut Vec<u8>, c: char| out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        loop {
            let Some(c) = self.peek(0) else {
                self.at = self.chars.len();
                return None;
            };
            if c == quote && (!triple || (self.peek(1) == Some(quote) && self.peek(2) == Some(quote))) {
                self.at += if triple { 3 } else { 1 };
                break;
            }
            if !triple && matches!(c, '\n' | '\r') {
                return None;
            }
            self.at += 1;
            if c == '\r' {
                // Line ends are one character, however they were written.
                if self.peek(0) == Some('\n') {
                    self.at += 1;
                }
                out.push(b'\n');
            } else if c == '\\' && raw && self.peek(0).is_some() {
                // In a raw text a backslash stands for itself; a single-quoted one may not end with it.
                out.push(b'\\');
            } else if c == '\\' && !raw {
                match self.escape(bytes) {
                    Some(Escape::Char(c)) => push(&mut out, c),
                    Some(Escape::Byte(byte)) => out.push(byte),
                    None => {
                        self.issues
                            .push(Issue::new(begin as u32, "Syntax error: invalid escape sequence"));
                        out.push(b'?');
                    }
                }
            } else {
                push(&mut out, c);
            }
        }
        if bytes {
            return Some(Token::Literal(LiteralToken::Bytes(out)));
        }
        Some(Token::Literal(LiteralToken::String(
            String::from_utf8_lossy(&out).into_owned(),
        )))
    }

    fn escape(&mut self, bytes: bool) -> Option<Escape> {
        let c = self.peek(0)?;
        self.at += 1;
        let plain = match c {
            'a' => '\u{7}',
            'b' => '\u{8}',
            'f' => '\u{c}',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\u{b}',
            '\\' | '\'' | '"' | '`' | '?' => c,
            'x' | 'X' => return self.code(2, 16, bytes),
            'u' if !bytes => return self.code(4, 16, false),
            'U' if !bytes => return self.code(8, 16, false),
            '0'..='3' => {
                self.at -= 1;
                return self.code(3, 8, bytes);
            }
            _ => return None,
        };
        Some(Escape::Char(plain))
    }

    fn code(&mut self, digits: usize, radix: u32, byte: bool) -> Option<Escape> {
        let mut value = 0u32;
        for _ in 0..digits {
            let digit = self.peek(0)?.to_digit(radix)?;
            value = value.checked_mul(radix)?.checked_add(digit)?;
            self.at += 1;
        }
        if byte {
            return u8::try_from(value).ok().map(Escape::Byte);
        }
        char::from_u32(value).map(Escape::Char)
    }
}

enum Escape {
    Char(char),
    Byte(u8),
}

impl LiteralToken {
    /// The value; `negative` if a minus precedes it.
    pub fn read(&self, negative: bool) -> Result<Literal, &'static str> {
        let radix = |text: &str| match text.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => text.parse().ok(),
        };
        Ok(match self {
            LiteralToken::Int(text) => {
                let magnitude = i128::from(radix(text).ok_or("invalid int literal")?);
                let value = if negative { -magnitude } else { magnitude };
                Literal::Int(i64::try_from(value).map_err(|_| "invalid int literal")?)
            }
            LiteralToken::Uint(text) => Literal::Uint(radix(text).ok_or("invalid uint literal")?),
            LiteralToken::Double(text) => {
                let value: f64 = text.parse().map_err(|_| "invalid double literal")?;
                if value.is_infinite() {
                    return Err("invalid double literal");
                }
                Literal::Double(if negative { -value } else { value })
            }
            LiteralToken::String(text) => Literal::String(text.as_str().into()),
            LiteralToken::Bytes(bytes) => Literal::Bytes(bytes.as_slice().into()),
        })
    }
}
