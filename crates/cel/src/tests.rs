//! Tables of expressions: what they are, why they are refused, what they cost. And that nothing breaks the bounds.

use proptest::prelude::*;
use serde_json::{Value as Json, json};

use crate::*;

fn env() -> Env {
    Env::new()
        .with("object", Decl::dynamic())
        .with("request", admission::request().clone())
        .with("authorizer", Decl::made(AUTHORIZER))
}

fn object() -> Json {
    json!({
        "metadata": {"name": "a", "labels": {"x": "1", "y": "2"}},
        "spec": {"replicas": 3, "big": 18_446_744_073_709_551_615u64, "ratio": 0.5, "none": null,
                 "items": [{"n": 1}, {"n": 2}, {"n": 3}]},
    })
}

fn run(source: &str) -> Result<String, String> {
    let program = env().compile(source).map_err(|error| {
        error
            .issues
            .into_iter()
            .map(|issue| issue.message)
            .collect::<Vec<_>>()
            .join("; ")
    })?;
    let object = object();
    let activation = Activation::new().with("object", Value::json(&object));
    let value = program
        .eval(&activation, &Budget::new(RUNTIME_BUDGET))
        .map_err(|error| error.to_string())?;
    Ok(format!("{value:?}"))
}

#[test]
fn expressions_have_values() {
    let mut wrong = Vec::new();
    for (source, expected) in [
        ("1 + 2 * 3 - -4", "11"),
        ("(1 + 2) * 3 % 4", "1"),
        ("7u / 2u", "3u"),
        ("1.5 + 2.5", "4.0"),
        ("'a' + \"b\" + r'\\n' + '''c'''", r#""ab\\nc""#),
        ("'\\u00e4\\x41\\101\\n'.size()", "4"),
        ("b'abc'.size() + bytes('ä').size()", "5"),
        ("-9223372036854775808 < 0 && 0x10 == 16", "true"),
        ("dyn(1u) == 1 && dyn(1) == dyn(1.0) && !(dyn(1) == dyn('1'))", "true"),
        (
            "1 < 1.5 && 2u > 1 && 'a' < 'b' && dyn(3) in [1, 2, 3] && 'x' in {'x': 1}",
            "true",
        ),
        ("true || 1 / 0 == 1", "true"),
        ("1 / 0 == 1 || true", "true"),
        ("1 / 0 == 1 && false", "false"),
        ("true ? 'yes' : 'no'", r#""yes""#),
        ("object.metadata.labels.x + object.metadata.labels['y']", r#""12""#),
        (
            "has(object.spec.replicas) && !has(object.spec.nothing) && !has(object.status)",
            "true",
        ),
        ("object.spec.none == null", "true"),
        ("object.spec.big > 3", "true"),
        (
            "object.spec.items.all(i, i.n > 0) && object.spec.items.exists(i, i.n == 2)",
            "true",
        ),
        ("object.spec.items.exists_one(i, i.n == 2)", "true"),
        ("object.spec.items.map(i, i.n * 2)", "[2, 4, 6]"),
        ("object.spec.items.map(i, i.n > 1, i.n)", "[2, 3]"),
        ("object.spec.items.filter(i, i.n > 1).size()", "2"),
        ("[1, 2].all(x, [3, 4].all(y, y > x))", "true"),
        ("['a', 'b'].transformList(i, v, string(i) + v)", r#"["0a", "1b"]"#),
        ("['a', 'b'].transformMap(i, v, v)[1]", r#""b""#),
        ("{'a': 1}.transformMapEntry(k, v, {v: k})[1]", r#""a""#),
        (
            "{'a': 1, 'b': 2}.exists(k, v, v == 2) && {'a': 1}.all(k, k == 'a')",
            "true",
        ),
        ("[1, 0].exists(x, 1 / x == 1) && [0, 1].exists(x, 1 / x == 1)", "true"),
        ("object.?spec.?replicas.orValue(1)", "3"),
        ("object.?spec.?nothing.orValue(1)", "1"),
        ("object.?nothing.deeper.hasValue()", "false"),
        (
            "[1, 2][?5].orValue(7) + {'a': 1}[?'b'].or(optional.of(3)).value()",
            "10",
        ),
        ("object.?spec.replicas.optMap(r, r + 1).orValue(0)", "4"),
        (
            "[?optional.none(), ?optional.of(1)] == [1] && {?'a': optional.of(1)} == {'a': 1}",
            "true",
        ),
        (
            "type(1) == int && type('') == string && type(object.spec.items) == list",
            "true",
        ),
        ("type(type(1)) == type && type(null) == null_type", "true"),
        ("int('42') + int(3.9) + int(4u)", "49"),
        (
            "string(1) + string(true) + string(1.5) + string(b'x')",
            r#""1true1.5x""#,
        ),
        ("double('1e3') == 1000.0 && uint(7) == 7u && bool('true')", "true"),
        ("duration('1h') + duration('30m') == duration('90m')", "true"),
        ("string(duration('90m'))", r#""5400s""#),
        (
            "timestamp('2023-01-10T12:00:00Z') - duration('12h') == timestamp('2023-01-10T00:00:00Z')",
            "true",
        ),
        (
            "timestamp('2023-01-10T12:30:05Z').getHours() + timestamp('2023-01-10T12:00:00Z').getDayOfWeek()",
            "14",
        ),
        ("timestamp('2023-01-10T12:30:05Z').getHours('-02:00')", "10"),
        ("duration('90m').getMinutes()", "90"),
        ("'hello'.matches('^h.*o$') && matches('a', 'a')", "true"),
        ("'abc 123 def'.find('[0-9]+') + 'a1b2'.findAll('[0-9]')[1]", r#""1232""#),
        (
            "'hello'.indexOf('l') + 'hello'.lastIndexOf('l') + 'hello'.indexOf('x')",
            "4",
        ),
        (
            "'a,b,c'.split(',').join('-') + 'Hello'.lowerAscii() + 'x'.upperAscii()",
            r#""a-b-chelloX""#,
        ),
        (
            "'hello'.substring(1, 3) + ' x '.trim() + 'aXbX'.replace('X', 'y') + 'aXbX'.replace('X', 'y', 1)",
            r#""elxaybyaybX""#,
        ),
        (
            "'%s is %d and %.2f, %x %b %o %e'.format(['a', 1, 2.0, 255, 5, 8, 1234.5])",
            r#""a is 1 and 2.00, ff 101 10 1.234500e+03""#,
        ),
        (
            "'%s %d %.2f %s'.format([dyn('a'), 1, 2.0, [1, 2]])",
            r#""a 1 2.00 [1, 2]""#,
        ),
        ("strings.quote('a\"b')", r#""\"a\\\"b\"""#),
        (
            "[3, 1, 2].max() + [3, 1, 2].min() + [3, 1, 2].sum() + [1, 2, 1].lastIndexOf(1)",
            "12",
        ),
        ("[1, 2, 2].isSorted() && ![2, 1].isSorted() && [].sum() == 0", "true"),
        ("[3, 1, 2].sort()", "[1, 2, 3]"),
        ("['bb', 'a'].sortBy(s, s.size())", r#"["a", "bb"]"#),
        (
            "[[1], [2, 3]].flatten() == [1, 2, 3] && [1, 1, 2].distinct() == [1, 2]",
            "true",
        ),
        (
            "lists.range(3) + [1, 2].reverse() + [1, 2, 3].slice(1, 2)",
            "[0, 1, 2, 2, 1, 2]",
        ),
        ("[1, 2].first().value() + [1, 2].last().value()", "3"),
        (
            "sets.contains([1, 2], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && sets.intersects([1], [1, 2])",
            "true",
        ),
        (
            "quantity('1Gi').isGreaterThan(quantity('1G')) && quantity('500m').add(quantity('0.5')).asInteger() == 1",
            "true",
        ),
        (
            "isQuantity('x') || quantity('1.3Gi').compareTo(quantity('1Ki')) == 1",
            "true",
        ),
        (
            "quantity('1') == quantity('1000m') && quantity('50k').sub(20).isInteger()",
            "true",
        ),
        (
            "ip('10.0.0.1').family() == 4 && isIP('::1') && !isIP('10.0.0.256') && ip('::1').isLoopback()",
            "true",
        ),
        (
            "cidr('10.0.0.0/8').containsIP('10.1.2.3') && cidr('10.0.0.0/8').containsCIDR(cidr('10.1.0.0/16'))",
            "true",
        ),
        (
            "string(cidr('10.0.0.5/8').masked()) + string(cidr('10.0.0.5/8').ip())",
            r#""10.0.0.0/810.0.0.5""#,
        ),
        (
            "url('https://user@example.com:80/path?k=a#f').getHost()",
            r#""example.com:80""#,
        ),
        (
            "url('https://example.com:80/').getHostname() + url('https://example.com:80/').getPort()",
            r#""example.com80""#,
        ),
        (
            "url('https://example.com/a b'.replace(' ', '%20')).getEscapedPath()",
            r#""/a%20b""#,
        ),
        ("url('https://example.com/?k=a&k=b').getQuery()['k']", r#"["a", "b"]"#),
        ("isURL('/absolute') && !isURL('relative')", "true"),
        (
            "semver('1.2.3').isLessThan(semver('1.10.0')) && isSemver('v1.0', true) && semver('1.2.3').minor() == 2",
            "true",
        ),
        ("format.dns1123Label().validate('a-b').hasValue()", "false"),
        (
            "format.named('dns1123Label').value().validate('A').value().size() > 0",
            "true",
        ),
        ("(1, 2)", ""),
    ] {
        let found = run(source);
        if found.as_deref() != Ok(expected) && !(expected.is_empty() && found.is_err()) {
            wrong.push(format!("{source}: {found:?}, not {expected}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn evaluations_fail_with_the_usual_words() {
    for (source, expected) in [
        ("1 / 0 == 1", "division by zero"),
        ("1 % 0 == 1", "modulus by zero"),
        ("9223372036854775807 + 1 == 0", "integer overflow"),
        ("[1][3] == 1", "index out of bounds: 3"),
        ("object.nothing == 1", "no such key: nothing"),
        ("{'a': 1}['b'] == 1", "no such key: b"),
        ("object.spec.replicas + 'a' == 'b'", "no such overload"),
        ("optional.none().value() == 1", "optional.none() dereference"),
        ("[1].map(x, x / 0) == []", "division by zero"),
        ("[0, 0].all(x, 1 / x == 1)", "division by zero"),
        (
            "quantity('x') == quantity('1')",
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
    ] {
        assert_eq!(run(source), Err(expected.to_owned()), "{source}");
    }
}

#[test]
fn wrong_expressions_are_refused_with_the_usual_words() {
    for (source, expected) in [
        ("nothing", "undeclared reference to 'nothing' (in container '')"),
        ("nothing(1)", "undeclared reference to 'nothing' (in container '')"),
        ("request.nothing", "undefined field 'nothing'"),
        (
            "1 + 'a'",
            "found no matching overload for '_+_' applied to '(int, string)'",
        ),
        (
            "'a'.size(1)",
            "found no matching overload for 'size' applied to 'string.(int)'",
        ),
        ("[1, 'a']", "expected type 'int' but found 'string'"),
        ("1 && true", "expected type 'bool' but found 'int'"),
        ("'a'.b", "type 'string' does not support field selection"),
        (
            "1.all(x, true)",
            "expression of type 'int' cannot be range of a comprehension (must be list, map, or dynamic)",
        ),
        ("has(1)", "invalid argument to has() macro"),
        ("'a'.matches('(')", "invalid matches argument"),
        ("duration('1x') == duration('1s')", "invalid duration argument"),
        ("for", "reserved identifier: for"),
        ("9999999999999999999", "invalid int literal"),
        ("[1].all(1, true)", "argument must be a simple name"),
        ("Object{}", "undeclared reference to 'Object' (in container '')"),
        (
            "jsonpatch.escapeKey('a')",
            "undeclared reference to 'jsonpatch' (in container ''); undeclared reference to 'escapeKey' (in container '')",
        ),
    ] {
        assert_eq!(run(source), Err(expected.to_owned()), "{source}");
    }
    let shown = |source: &str| {
        env()
            .compile(source)
            .err()
            .map(|error| error.to_string())
            .unwrap_or_default()
    };
    assert_eq!(
        shown("object.a = 42"),
        "ERROR: <input>:1:10: Syntax error: token recognition error at: '= '\n | object.a = 42\n | .........^\n\
         ERROR: <input>:1:12: Syntax error: extraneous input '42' expecting <EOF>\n | object.a = 42\n | ...........^"
    );
    assert_eq!(
        shown("object.a ==\n  \tfoo"),
        "ERROR: <input>:2:4: undeclared reference to 'foo' (in container '')\n |    foo\n | ...^"
    );
    let slashes = shown("/../x");
    assert!(
        slashes.starts_with("ERROR: <input>:1:1: Syntax error: extraneous input '/' expecting {'[', '{',")
            && slashes.contains("ERROR: <input>:1:3: Syntax error: no viable alternative at input '..'"),
        "{slashes}"
    );
    assert!(shown("1 +").contains("Syntax error: mismatched input '<EOF>' expecting {'[', '{',"));
}

#[test]
fn mutations_may_make_objects() {
    let env = env().for_mutation();
    let program = env
        .compile("Object{spec: Object.spec{replicas: object.spec.replicas + 1, ?gone: object.?gone}}")
        .unwrap();
    assert_eq!(program.output().to_string(), "Object");
    let object = object();
    let activation = Activation::new().with("object", Value::json(&object));
    let value = program.eval(&activation, &Budget::new(RUNTIME_BUDGET)).unwrap();
    assert_eq!(value.to_json(), Some(json!({"spec": {"replicas": 4}})));
    let patch = env
        .compile("[JSONPatch{op: 'add', path: '/a/' + jsonpatch.escapeKey('x/y'), value: {'k': [1]}}]")
        .unwrap();
    assert_eq!(patch.output().to_string(), "list(JSONPatch)");
    let value = patch.eval(&activation, &Budget::new(RUNTIME_BUDGET)).unwrap();
    assert_eq!(
        value.to_json(),
        Some(json!([{"op": "add", "path": "/a/x~1y", "value": {"k": [1]}}]))
    );
    assert!(env.compile("JSONPatch{nothing: 1}").is_err());
    assert!(env.compile("JSONPatch{op: 1}").is_err());
}

#[test]
fn schemas_type_their_values() {
    let schema = json!({"type": "object", "properties": {
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
        "map": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["k"],
            "items": {"type": "object", "properties": {"k": {"type": "string"}, "v": {"type": "integer"}}}},
        "at": {"type": "string", "format": "date-time"}, "number": {"type": "number"},
        "port": {"x-kubernetes-int-or-string": true}, "namespace": {"type": "string"},
    }});
    let decl = Decl::of_schema(&schema, "selfType", true).unwrap();
    let env = Env::new().with("self", decl.clone());
    let object = json!({"kind": "K", "metadata": {"name": "n"}, "set": ["a", "b"], "map": [{"k": "1", "v": 1}],
        "at": "2023-01-01T00:00:00Z", "number": 1, "port": 80, "namespace": "ns"});
    let activation = Activation::new().with("self", Value::typed(&object, &decl));
    for source in [
        "self.set == ['b', 'a']",
        "self.set + ['a', 'c'] == ['a', 'b', 'c']",
        "self.map.exists(e, e.k == '1' && e.v == 1)",
        "self.at.getFullYear() == 2023",
        "self.number == 1.0 && type(self.number) == double",
        "type(self.port) == int && self.port == 80",
        "self.__namespace__ == 'ns' && self.metadata.name == 'n'",
    ] {
        let program = env.compile(source).unwrap_or_else(|error| panic!("{source}: {error}"));
        let value = program.eval(&activation, &Budget::new(RUNTIME_BUDGET));
        assert_eq!(value.map(|value| value.as_bool()), Ok(Some(true)), "{source}");
    }
}

#[test]
fn costs_are_estimated_as_upstream_does() {
    let schema = json!({"type": "object", "properties": {
        "list": {"type": "array", "items": {"type": "string"}},
        "short": {"type": "array", "maxItems": 10, "items": {"type": "string", "maxLength": 5}},
        "n": {"type": "integer"}, "m": {"type": "integer"},
    }});
    let decl = Decl::of_schema(&schema, "selfType", false).unwrap();
    let env = Env::new().with("self", decl);
    let cost = |source: &str| env.compile(source).unwrap().cost().max;
    // Four accesses and a comparison of nothing larger than zero bytes.
    assert_eq!(cost("self.n > self.m"), 5);
    // 1 + 1 for the range, then for every item: not_strictly_false(1) + accu(1) + accu(1) + item(1) + comparison.
    assert_eq!(
        cost("self.short.all(s, s == 'string constant')"),
        2 + 1 + 10 * (2 + 1 + 1 + 2)
    );
    assert!(cost("self.list.all(s, s == 'string constant')") > 5_000_000);
    assert!(cost("self.list.all(x, self.list.all(y, x == y))") > 1_000_000_000_000);
}

/// Each of these could cost gigabytes or minutes.
#[test]
fn hostile_expressions_end_soon() {
    let doubling = |times: usize| {
        let mut source = "x".to_owned();
        for _ in 0..times {
            source = format!("[{source}].map(x, x + x)[0]");
        }
        source
    };
    let deep = |open: &str, close: &str| format!("{}1{}", open.repeat(100_000 / 4), close.repeat(100_000 / 4));
    for source in [
        format!("['aaaaaaaaaa'].map(x, {}).size() > 0", doubling(40)),
        format!("[[1, 2, 3]].map(x, {}).size() > 0", doubling(40)),
        "lists.range(1000000000000).size() > 0".to_owned(),
        "lists.range(900000).all(x, lists.range(900000).all(y, x != y + 1000000))".to_owned(),
        "'%.1000000000f'.format([1.0]) == ''".to_owned(),
        "'a'.replace('', 'b').size() > 0 && lists.range(5000).map(x, 'a{1000}' + string(x)).exists(p, 'x'.matches(p))"
            .to_owned(),
        "lists.range(100000).map(x, lists.range(100000)).flatten().distinct().size() > 0".to_owned(),
    ] {
        let begun = std::time::Instant::now();
        let outcome = run(&source);
        assert!(outcome.is_err(), "{source}: {outcome:?}");
        assert!(begun.elapsed() < std::time::Duration::from_secs(60), "{source}");
    }
    for source in [
        deep("(", ")"),
        deep("[", "]"),
        "-(".repeat(20_000) + "1" + &")".repeat(20_000),
        "!".repeat(90_000) + "true",
        "1".to_owned() + &"+1".repeat(40_000),
        "a".to_owned() + &".a".repeat(40_000),
        "true".to_owned() + &" && true".repeat(10_000),
        "true ? ".repeat(10_000) + "1",
        "a".repeat(100_001),
        "'a".repeat(10_000),
        "=".repeat(90_000),
    ] {
        // Whatever comes of it, it comes without a crash.
        let _ = run(&source);
    }
    assert!(
        run(&("a".to_owned() + &".a".repeat(40_000)))
            .unwrap_err()
            .contains("recursion limit")
    );
}

/// The highest trees that are accepted fit into the stack of a worker.
#[test]
fn high_trees_need_little_stack() {
    let sources = [
        "(".repeat(98) + "1" + &")".repeat(98),
        "[".repeat(98) + "1" + &"]".repeat(98),
        "1".to_owned() + &" + 1".repeat(245),
        "true ? 1 : ".repeat(245) + "1",
        "object".to_owned() + &".?a".repeat(245),
        "[1].map(x, ".repeat(60) + "1" + &")".repeat(60),
        "-(".repeat(98) + "1" + &")".repeat(98),
    ];
    let thread = std::thread::Builder::new().stack_size(1_536 * 1024);
    let thread = thread
        .spawn(move || sources.map(|source| run(&source).map(|_| ())))
        .unwrap();
    for outcome in thread.join().unwrap() {
        assert_eq!(outcome, Ok(()));
    }
}

proptest! {
    #[test]
    fn any_text_is_parsed_or_refused(source in "\\PC{0,60}") {
        let _ = run(&source);
    }

    /// Sentences out of the language's own words get further than noise.
    #[test]
    fn any_sentence_is_evaluated_or_refused(words in proptest::collection::vec(prop::sample::select(vec![
        "1", "2u", "1.5", "'a'", "b'a'", "true", "null", "object", "request", "x", "(", ")", "[", "]", "{", "}", ".", ",",
        ":", "?", "+", "-", "*", "/", "%", "==", "<", "in", "&&", "||", "!", ".spec", ".size()", ".map(x, ", ".all(x, ",
        ".filter(x, x == 1)", ".matches('a')", ".?items", "[?0]", "[0]", "has(", "dyn(", "type(", "string(", ".sum()",
        ".split('')", ".join()", ".sort()", ".flatten()", "lists.range(", "optional.of(", ".orValue(", "duration('1h')",
        ".replace('a', 'b')", ".format([1])", "quantity('1')", ".add(", "Object{a: 1}", ".transformMap(k, v, ",
    ]), 0..25)) {
        let source: String = words.concat();
        let _ = run(&source);
    }
}
