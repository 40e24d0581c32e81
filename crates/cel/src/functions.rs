//! The table of functions: what they are called, how they may be called, what they cost, and what they do.

use std::collections::HashMap;
use std::sync::LazyLock;

use crate::context::Context;
use crate::error::EvalError;
use crate::library;
use crate::types::Overload;
use crate::value::Value;

pub(crate) type Native = for<'a> fn(&Context<'_>, &[Value<'a>]) -> Result<Value<'a>, EvalError>;
pub(crate) type Outcome<'a> = Result<Value<'a>, EvalError>;

/// How the cost of a call is counted, both when it happens and in advance. Figures are upstream's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cost {
    /// A fixed price.
    Fixed(u64),
    /// `dyn(…)`, whose size is its argument's.
    Dyn,
    /// So many passes over the target text, which is also how long the result can get.
    Text(u8),
    /// As `Text`, but nothing is known of the result.
    Parse(u8),
    /// A pass over a text into a longer one.
    Quote,
    /// Conversion between text and bytes; one for all else.
    Convert,
    Replace,
    Split,
    Join,
    Format,
    Affix,
    Pattern {
        finds: bool,
    },
    Contains,
    In,
    Compare,
    Add,
    /// A pass over all there is in a list, or over a text.
    Traverse,
    /// A list as long as the result.
    MakeList,
    Flatten,
    /// Every item with every other; of the argument with this number.
    SelfCompare(u8),
    /// So many passes of one list over another.
    Product(u8),
    Selector,
    /// `ip` of a text or of a range.
    Ip,
    ContainsIp,
    ContainsCidr,
    Validate,
    Logic,
    Conditional,
    Index,
}

#[derive(Debug)]
pub(crate) struct Function {
    pub name: &'static str,
    pub overloads: Vec<Overload>,
    pub cost: Cost,
    pub native: Native,
    /// Only where objects are changed.
    pub mutation_only: bool,
}

/// A line of a library: name, signatures, cost, code.
pub(crate) type Row = (&'static str, &'static [&'static str], Cost, Native);

static FUNCTIONS: LazyLock<HashMap<&'static str, Function>> = LazyLock::new(|| {
    let mut functions: HashMap<&'static str, Function> = HashMap::new();
    for row in library::rows() {
        let (name, signatures, cost, native) = *row;
        let function = Function {
            name,
            overloads: signatures.iter().map(|text| Overload::parse(text)).collect(),
            cost,
            native,
            mutation_only: name.starts_with("jsonpatch."),
        };
        let twice = functions.insert(name, function);
        debug_assert!(twice.is_none(), "{name} is declared twice");
    }
    functions
});

pub(crate) fn find(name: &str) -> Option<&'static Function> {
    FUNCTIONS.get(name)
}
