//! Tokens into a tree, by precedence climbing. Nesting is limited, so neither parsing nor anything that walks the
//! tree later can run out of stack; chains of `&&` and `||` are one call with many arguments.

use std::sync::Arc;

use crate::ast::{Call, Element, Expr, Kind, MapEntry, Select, StructExpr, StructField};
use crate::error::{CompileError, Issue};
use crate::lexer::{LiteralToken, Spanned, Token, tokenize};
use crate::macros;

/// How high a tree may be.
const MAX_HEIGHT: u32 = 250;
/// How deep brackets may be nested. Less than the height, because every bracket passes through all precedences.
const MAX_NESTING: u32 = 100;
/// How long an expression may be, in characters.
const MAX_LENGTH: usize = 100_000;

const EXPECTED: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, STRING, \
                        BYTES, IDENTIFIER}";

/// Words that may not name a variable.
const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "package",
    "namespace",
    "return",
    "var",
    "void",
    "while",
];

pub(crate) fn parse(source: &str, bindings: bool) -> Result<Expr, CompileError> {
    let length = source.chars().count();
    if length > MAX_LENGTH {
        return Err(CompileError::plain(format!(
            "ERROR: <input>:-1:0: expression code point size exceeds limit: size: {length}, limit {MAX_LENGTH}"
        )));
    }
    let (tokens, issues) = tokenize(source);
    let mut parser = Parser {
        tokens,
        next: 0,
        depth: 0,
        bindings,
        issues,
    };
    let tree = parser.ternary().and_then(|tree| {
        if !parser.at_end() {
            let spanned = parser.peek();
            return Err(Issue::new(
                spanned.at,
                format!("Syntax error: extraneous input '{}' expecting <EOF>", spanned.text),
            ));
        }
        Ok(tree)
    });
    let mut issues = parser.issues;
    match tree {
        Ok(tree) if issues.is_empty() => Ok(tree),
        Ok(_) => Err(CompileError::new(source, issues)),
        Err(issue) => {
            issues.push(issue);
            Err(CompileError::new(source, issues))
        }
    }
}

struct Parser {
    tokens: Vec<Spanned>,
    next: usize,
    depth: u32,
    /// Whether `cel.bind` is a macro.
    bindings: bool,
    issues: Vec<Issue>,
}

type Parsed = Result<Expr, Issue>;

static END: Spanned = Spanned {
    token: Token::End,
    at: 0,
    text: String::new(),
};

impl Parser {
    fn peek(&self) -> &Spanned {
        self.tokens.get(self.next).or(self.tokens.last()).unwrap_or(&END)
    }
    fn at_end(&self) -> bool {
        self.peek().token == Token::End
    }
    fn advance(&mut self) -> Spanned {
        let token = self.peek().clone();
        self.next += 1;
        token
    }
    fn is(&self, symbol: &str) -> bool {
        matches!(&self.peek().token, Token::Symbol(found) if *found == symbol)
    }
    fn eat(&mut self, symbol: &str) -> bool {
        let found = self.is(symbol);
        if found {
            self.next += 1;
        }
        found
    }
    fn expect(&mut self, symbol: &str) -> Result<(), Issue> {
        if self.eat(symbol) {
            return Ok(());
        }
        Err(self.mismatched(&format!("'{symbol}'")))
    }
    fn mismatched(&self, expected: &str) -> Issue {
        let found = self.peek();
        Issue::new(
            found.at,
            format!("Syntax error: mismatched input '{}' expecting {expected}", found.text),
        )
    }

    /// A node, if the tree does not get too high by it.
    fn node(&self, at: u32, kind: Kind) -> Parsed {
        self.checked(Expr::new(at, kind))
    }
    fn checked(&self, expr: Expr) -> Parsed {
        if expr.height > MAX_HEIGHT {
            return Err(too_deep(expr.at));
        }
        Ok(expr)
    }
    fn call(&self, at: u32, function: &str, args: Vec<Expr>) -> Parsed {
        self.checked(Expr::call(at, function, args))
    }

    fn nested<T>(&mut self, parse: impl FnOnce(&mut Self) -> Result<T, Issue>) -> Result<T, Issue> {
        if self.depth >= MAX_NESTING {
            return Err(too_deep(self.peek().at));
        }
        self.depth += 1;
        let parsed = parse(self);
        self.depth -= 1;
        parsed
    }

    fn ternary(&mut self) -> Parsed {
        self.nested(|parser| {
            // `a ? b : c ? d : e` is read in a row, so that long ones do not nest.
            let mut choices = Vec::new();
            let mut last = parser.or()?;
            while parser.is("?") {
                let at = parser.advance().at;
                let yes = parser.or()?;
                parser.expect(":")?;
                choices.push((at, std::mem::replace(&mut last, parser.or()?), yes));
            }
            while let Some((at, condition, yes)) = choices.pop() {
                last = parser.call(at, "_?_:_", vec![condition, yes, last])?;
            }
            Ok(last)
        })
    }

    fn or(&mut self) -> Parsed {
        self.chain("||", "_||_", |parser| parser.chain("&&", "_&&_", Self::relation))
    }

    fn chain(&mut self, symbol: &str, function: &str, inner: impl Fn(&mut Self) -> Parsed) -> Parsed {
        let first = inner(self)?;
        if !self.is(symbol) {
            return Ok(first);
        }
        let at = self.peek().at;
        let mut terms = vec![first];
        while self.eat(symbol) {
            terms.push(inner(self)?);
        }
        self.call(at, function, terms)
    }

    fn relation(&mut self) -> Parsed {
        let mut left = self.sum()?;
        loop {
            let function = match &self.peek().token {
                Token::Symbol("<") => "_<_",
                Token::Symbol("<=") => "_<=_",
                Token::Symbol(">") => "_>_",
                Token::Symbol(">=") => "_>=_",
                Token::Symbol("==") => "_==_",
                Token::Symbol("!=") => "_!=_",
                Token::Ident(word) if word == "in" => "@in",
                _ => return Ok(left),
            };
            let at = self.advance().at;
            let right = self.sum()?;
            left = self.call(at, function, vec![left, right])?;
        }
    }

    fn sum(&mut self) -> Parsed {
        let mut left = self.product()?;
        loop {
            let function = match &self.peek().token {
                Token::Symbol("+") => "_+_",
                Token::Symbol("-") => "_-_",
                _ => return Ok(left),
            };
            let at = self.advance().at;
            let right = self.product()?;
            left = self.call(at, function, vec![left, right])?;
        }
    }

    fn product(&mut self) -> Parsed {
        let mut left = self.unary()?;
        loop {
            let function = match &self.peek().token {
                Token::Symbol("*") => "_*_",
                Token::Symbol("/") => "_/_",
                Token::Symbol("%") => "_%_",
                _ => return Ok(left),
            };
            let at = self.advance().at;
            let right = self.unary()?;
            left = self.call(at, function, vec![left, right])?;
        }
    }

    /// `!!a` is `a`, `---a` is `-a`, as in cel-go.
    fn unary(&mut self) -> Parsed {
        self.skip_extraneous();
        for (symbol, function) in [("!", "!_"), ("-", "-_")] {
            if !self.is(symbol) {
                continue;
            }
            let at = self.peek().at;
            let mut count = 0;
            while self.eat(symbol) {
                count += 1;
            }
            if symbol == "-"
                && count == 1
                && let Token::Literal(number @ (LiteralToken::Int(_) | LiteralToken::Double(_))) = &self.peek().token
            {
                let number = number.clone();
                self.next += 1;
                let literal = match number.read(true) {
                    Ok(literal) => Expr::literal(at, literal),
                    Err(why) => return Err(Issue::new(at, why)),
                };
                return self.suffixes(literal);
            }
            let operand = self.member()?;
            return if count % 2 == 1 {
                self.call(at, function, vec![operand])
            } else {
                Ok(operand)
            };
        }
        self.member()
    }

    /// Whether an expression can begin with the token.
    fn begins(token: &Token) -> bool {
        match token {
            Token::Literal(_) => true,
            Token::Ident(word) => word != "in",
            Token::Symbol(symbol) => matches!(*symbol, "[" | "{" | "(" | "." | "-" | "!"),
            _ => false,
        }
    }

    /// A token that cannot be here, before one that can, is told of and passed over.
    fn skip_extraneous(&mut self) {
        let (here, next) = (self.peek(), self.tokens.get(self.next + 1));
        if self.at_end() || Self::begins(&here.token) || !next.is_some_and(|next| Self::begins(&next.token)) {
            return;
        }
        let why = format!("Syntax error: extraneous input '{}' expecting {EXPECTED}", here.text);
        let issue = Issue::new(here.at, why);
        self.issues.push(issue);
        self.next += 1;
    }

    fn member(&mut self) -> Parsed {
        let primary = self.primary()?;
        self.suffixes(primary)
    }

    fn suffixes(&mut self, mut left: Expr) -> Parsed {
        loop {
            if self.is(".") {
                let at = self.advance().at;
                let optional = self.eat("?");
                let name = self.name()?;
                if !optional && self.is("(") {
                    let open = self.advance().at;
                    let args = self.list_of(")", Self::ternary)?;
                    left = match macros::member(open, left, &name, args, self.bindings)? {
                        macros::Expansion::Done(expr) => self.checked(*expr)?,
                        macros::Expansion::Not(target, args) => {
                            self.checked(Expr::member(open, target, &name, args))?
                        }
                    };
                    continue;
                }
                left = self.node(
                    at,
                    Kind::Select(Box::new(Select {
                        operand: left,
                        field: name,
                        test: false,
                        optional,
                    })),
                )?;
            } else if self.is("[") {
                let at = self.advance().at;
                let function = if self.eat("?") { "_[?_]" } else { "_[_]" };
                let index = self.ternary()?;
                self.expect("]")?;
                left = self.call(at, function, vec![left, index])?;
            } else if self.is("{")
                && let Some(name) = left.qualified()
            {
                let at = self.advance().at;
                let fields = self.list_of("}", |parser| {
                    let optional = parser.eat("?");
                    let at = parser.peek().at;
                    let name = parser.name()?;
                    parser.expect(":")?;
                    let value = parser.ternary()?;
                    Ok(StructField {
                        at,
                        name,
                        value,
                        optional,
                    })
                })?;
                let made = StructExpr {
                    name: name.into(),
                    fields,
                };
                left = self.node(at, Kind::Struct(Box::new(made)))?;
            } else {
                return Ok(left);
            }
        }
    }

    /// A name after a point.
    fn name(&mut self) -> Result<Arc<str>, Issue> {
        match &self.peek().token {
            Token::Ident(name) if !matches!(name.as_str(), "in" | "true" | "false" | "null") => {
                let name: Arc<str> = name.as_str().into();
                self.next += 1;
                Ok(name)
            }
            _ => Err(self.mismatched("IDENTIFIER")),
        }
    }

    /// Things between commas up to `close`; a comma may follow the last.
    fn list_of<T>(&mut self, close: &str, item: impl Fn(&mut Self) -> Result<T, Issue>) -> Result<Vec<T>, Issue> {
        let mut items = Vec::new();
        loop {
            if self.eat(close) {
                return Ok(items);
            }
            items.push(item(self)?);
            if !self.eat(",") {
                self.expect(close)?;
                return Ok(items);
            }
            if close == ")" && self.is(")") {
                return Err(self.mismatched(EXPECTED));
            }
        }
    }

    fn primary(&mut self) -> Parsed {
        let spanned = self.peek().clone();
        match spanned.token {
            Token::Literal(literal) => {
                self.next += 1;
                match literal.read(false) {
                    Ok(literal) => Ok(Expr::literal(spanned.at, literal)),
                    Err(why) => Err(Issue::new(spanned.at, why)),
                }
            }
            Token::Ident(name) => self.word(spanned.at, &name),
            Token::Symbol(".") => {
                self.next += 1;
                let found = self.peek();
                if !matches!(found.token, Token::Ident(_)) {
                    let text = if self.at_end() { "" } else { &found.text };
                    let why = format!("Syntax error: no viable alternative at input '.{text}'");
                    return Err(Issue::new(found.at, why));
                }
                let name = self.name()?;
                self.named(spanned.at, &name)
            }
            Token::Symbol("(") => {
                self.next += 1;
                let inner = self.ternary()?;
                self.expect(")")?;
                Ok(inner)
            }
            Token::Symbol("[") => {
                self.next += 1;
                let elements = self.list_of("]", |parser| {
                    let optional = parser.eat("?");
                    let value = parser.ternary()?;
                    Ok(Element { value, optional })
                })?;
                self.node(spanned.at, Kind::List(elements))
            }
            Token::Symbol("{") => {
                self.next += 1;
                let entries = self.list_of("}", |parser| {
                    let optional = parser.eat("?");
                    let key = parser.ternary()?;
                    parser.expect(":")?;
                    let value = parser.ternary()?;
                    Ok(MapEntry { key, value, optional })
                })?;
                self.node(spanned.at, Kind::Map(entries))
            }
            _ => Err(self.mismatched(EXPECTED)),
        }
    }

    fn word(&mut self, at: u32, word: &str) -> Parsed {
        use crate::ast::Literal;
        let literal = match word {
            "true" => Literal::Bool(true),
            "false" => Literal::Bool(false),
            "null" => Literal::Null,
            "in" => return Err(self.mismatched(EXPECTED)),
            _ => {
                self.next += 1;
                if RESERVED.contains(&word) {
                    return Err(Issue::new(at, format!("reserved identifier: {word}")));
                }
                return self.named(at, word);
            }
        };
        self.next += 1;
        Ok(Expr::literal(at, literal))
    }

    /// A variable or a call, after its name.
    fn named(&mut self, at: u32, name: &str) -> Parsed {
        if !self.is("(") {
            return Ok(Expr::ident(at, name));
        }
        let open = self.advance().at;
        let args = self.list_of(")", Self::ternary)?;
        if name == "has" && args.len() == 1 {
            return macros::has(open, args);
        }
        let call = Call::new(name, None, args);
        self.node(open, Kind::Call(Box::new(call)))
    }
}

fn too_deep(at: u32) -> Issue {
    Issue::new(at, format!("expression recursion limit exceeded: {MAX_HEIGHT}"))
}
