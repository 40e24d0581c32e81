//! The selectors of devices: expressions over `device`, with sizes known so that what they can cost is.
//!
//! Different from upstream: keys of maps are taken as short whatever they are declared with, so an expression that
//! walks over all domains is estimated a little cheaper.

use std::sync::{Arc, LazyLock};

use crate::schema::{Decl, Shape};
use crate::types::Type;
use crate::{Env, Program};

/// Attributes and capacities of one device, at most.
const ENTRIES: u64 = 32;
/// Characters of an attribute's value, at most.
const VALUE: u64 = 64;
const DRIVER: u64 = 63;
/// What one selector may cost, at most.
const MAX_COST: u64 = 1_000_000;

/// Why a selector is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    Invalid(String),
    TooExpensive,
}

static ENV: LazyLock<Env> = LazyLock::new(|| {
    let sized = |ty: Type, shape: Shape, max: u64| Arc::new(Decl::new(ty, shape, max, 0));
    let by_domain = |value: Arc<Decl>| Decl::map_of(Decl::map_of(value, ENTRIES), ENTRIES);
    let attribute = sized(Type::Dyn, Shape::Dyn, VALUE);
    let device = Decl::object(
        "kubernetes.DRADevice",
        [
            ("driver", sized(Type::String, Shape::String, DRIVER)),
            ("attributes", by_domain(attribute)),
            ("capacity", by_domain(Decl::made(Type::Opaque("kubernetes.Quantity")))),
            ("allowMultipleAllocations", Decl::boolean()),
        ],
    );
    Env::new().with("device", device).with_bindings()
});

/// A selector that says yes or no to a device.
pub fn selector(expression: &str) -> Result<Program, Refusal> {
    let program = ENV
        .compile(expression)
        .map_err(|error| Refusal::Invalid(format!("compilation failed: {error}")))?;
    match program.output() {
        Type::Bool | Type::Dyn => {}
        other => {
            let why = format!("must evaluate to bool or the unknown type, not {other}");
            return Err(Refusal::Invalid(why));
        }
    }
    if program.cost().max > MAX_COST {
        return Err(Refusal::TooExpensive);
    }
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_know_devices_and_give_an_answer() {
        for good in [
            "true",
            "device.driver == 'dra.example.com'",
            "device.attributes['dra.example.com'].model == 'a'",
            "device.attributes['dra.example.com'].flag",
            "device.capacity['dra.example.com'].memory.compareTo(quantity('10Gi')) >= 0",
            "'dra.example.com' in device.attributes && device.allowMultipleAllocations",
            "cel.bind(dra, device.attributes['d'], dra.one && dra.other)",
        ] {
            assert!(selector(good).is_ok(), "{good}: {:?}", selector(good).err());
        }
        for (bad, why) in [
            ("-1", "must evaluate to bool or the unknown type, not int"),
            (
                "other",
                "compilation failed: ERROR: <input>:1:1: undeclared reference to 'other' (in container '')",
            ),
            (
                "",
                "compilation failed: ERROR: <input>:1:0: Syntax error: mismatched input '<EOF>'",
            ),
            (
                "device.nope",
                "compilation failed: ERROR: <input>:1:7: undefined field 'nope'",
            ),
        ] {
            match selector(bad) {
                Err(Refusal::Invalid(told)) => assert!(told.starts_with(why), "{bad}: {told}"),
                other => panic!("{bad}: {:?}", other.err()),
            }
        }
        let expensive = "device.attributes.all(a, device.attributes.all(b, device.attributes.all(c, device.attributes.all(d, a == b))))";
        assert_eq!(selector(expensive).err(), Some(Refusal::TooExpensive));
    }
}
