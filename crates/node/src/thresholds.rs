//! How little of a resource may be left before Pods are evicted: the kubelet's `--eviction-hard`.
//!
//! The text is upstream's: `memory.available<100Mi,nodefs.available<10%`. As there, what a given text does not name is
//! switched off, and `<0%` says the same of a signal by name.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use sampan_volumes::downward::units;

/// A bound: a share of the whole, or an amount.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Least {
    Percent(f64),
    Amount(u64),
}

impl Least {
    /// Whether `left` of `whole` is less than this. A whole of 0 is one that could not be measured.
    pub fn is_above(self, left: u64, whole: u64) -> bool {
        match self {
            // Sizes of disks are exact enough in a double.
            Least::Percent(percent) => whole > 0 && (left as f64) < whole as f64 * percent / 100.0,
            Least::Amount(amount) => whole > 0 && left < amount,
        }
    }
}

impl fmt::Display for Least {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Least::Percent(percent) => write!(f, "{percent}%"),
            Least::Amount(amount) if amount % (1 << 20) == 0 => write!(f, "{}Mi", amount >> 20),
            Least::Amount(amount) => write!(f, "{amount}"),
        }
    }
}

/// The hard thresholds. `None` switches a signal off.
#[derive(Clone, Debug, PartialEq)]
pub struct Eviction {
    pub memory: Option<Least>,
    /// The file system of the data directory.
    pub nodefs: Option<Least>,
    pub nodefs_inodes: Option<Least>,
    /// The file system of images.
    pub imagefs: Option<Least>,
    pub imagefs_inodes: Option<Least>,
    /// Process ids.
    pub pids: Option<Least>,
}

impl Default for Eviction {
    fn default() -> Self {
        Self {
            memory: Some(Least::Amount(100 << 20)),
            nodefs: Some(Least::Percent(10.0)),
            nodefs_inodes: Some(Least::Percent(5.0)),
            imagefs: Some(Least::Percent(15.0)),
            imagefs_inodes: Some(Least::Percent(5.0)),
            pids: Some(Least::Percent(5.0)),
        }
    }
}

impl Eviction {
    pub(crate) const OFF: Eviction = Eviction {
        memory: None,
        nodefs: None,
        nodefs_inodes: None,
        imagefs: None,
        imagefs_inodes: None,
        pids: None,
    };

    fn signals(&mut self) -> [(&'static str, &mut Option<Least>); 6] {
        [
            ("memory.available", &mut self.memory),
            ("nodefs.available", &mut self.nodefs),
            ("nodefs.inodesFree", &mut self.nodefs_inodes),
            ("imagefs.available", &mut self.imagefs),
            ("imagefs.inodesFree", &mut self.imagefs_inodes),
            ("pid.available", &mut self.pids),
        ]
    }

    /// The thresholds in force by their signals' names, as `/configz` shows them.
    pub fn named(&self) -> BTreeMap<&'static str, String> {
        let mut copy = self.clone();
        let signals = copy.signals().into_iter();
        signals
            .filter_map(|(name, least)| Some((name, (*least)?.to_string())))
            .collect()
    }
}

fn least(text: &str) -> Result<Option<Least>, String> {
    let bad = || format!("{text:?} is neither a quantity such as 500Mi nor a share such as 10%");
    if let Some(percent) = text.strip_suffix('%') {
        let percent: f64 = percent.trim().parse().map_err(|_| bad())?;
        if !(0.0..100.0).contains(&percent) {
            return Err(format!("{text:?} is not between 0% and 100%"));
        }
        return Ok((percent > 0.0).then_some(Least::Percent(percent)));
    }
    let amount = units(&Quantity(text.to_owned())).ok_or_else(bad)?;
    let amount = u64::try_from(amount).map_err(|_| bad())?;
    Ok((amount > 0).then_some(Least::Amount(amount)))
}

impl FromStr for Eviction {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut out = Self::OFF;
        let mut named: Vec<&str> = Vec::new();
        for part in text.split(',').map(str::trim).filter(|part| !part.is_empty()) {
            let Some((name, bound)) = part.split_once('<') else {
                return Err(format!("{part:?} is not SIGNAL<VALUE, such as nodefs.available<10%"));
            };
            let name = name.trim();
            let mut signals = out.signals().into_iter();
            let Some((_, signal)) = signals.find(|(known, _)| *known == name) else {
                return Err(format!(
                    "unknown signal {name:?}; there are memory.available, nodefs.available, nodefs.inodesFree, \
                     imagefs.available, imagefs.inodesFree and pid.available"
                ));
            };
            *signal = least(bound.trim())?;
            if named.contains(&name) {
                return Err(format!("{name} is given twice"));
            }
            named.push(name);
        }
        Ok(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts() {
        let parse = |text: &str| text.parse::<Eviction>();
        assert_eq!(
            parse(
                "memory.available<100Mi,nodefs.available<10%,nodefs.inodesFree<5%,imagefs.available<15%,imagefs.inodesFree<5%,pid.available<5%"
            ),
            Ok(Eviction::default())
        );
        let some = parse(" memory.available < 1Gi ,nodefs.available<0%").unwrap();
        assert_eq!(
            (some.memory, some.nodefs, some.pids),
            (Some(Least::Amount(1 << 30)), None, None)
        );
        assert_eq!(parse("").unwrap(), Eviction::OFF);
        for (bad, part) in [
            ("memory.available", "SIGNAL<VALUE"),
            ("disk<1%", "unknown signal"),
            ("memory.available<lots", "neither"),
            ("memory.available<-1", "neither"),
            ("nodefs.available<100%", "between"),
            ("nodefs.available<NaN%", "between"),
            ("nodefs.available<1%,nodefs.available<2%", "twice"),
        ] {
            let error = parse(bad).expect_err(bad);
            assert!(error.contains(part), "{bad}: {error}");
        }
    }

    #[test]
    fn bounds() {
        assert!(Least::Percent(10.0).is_above(9, 100));
        assert!(!Least::Percent(10.0).is_above(10, 100));
        assert!(!Least::Percent(10.0).is_above(0, 0));
        assert!(Least::Amount(100).is_above(99, 1000));
        assert_eq!(Least::Amount(100 << 20).to_string(), "100Mi");
        assert_eq!(Least::Percent(10.0).to_string(), "10%");
    }
}
