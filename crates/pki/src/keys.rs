//! The keys of a cluster that everything else hangs on, and how they are replaced without an outage.
//!
//! They are two authorities (the cluster's and the front proxy's, replaced together) and the key that signs service-account
//! tokens. Each is replaced in the same three steps, and which steps are done is told by which files there are:
//!
//! | phase | files besides `X.crt` and `X.key` | who issues | who is believed |
//! |---|---|---|---|
//! | [`Phase::Steady`] | | X | X |
//! | [`Phase::Trusted`] | `X-next.crt`, `X-next.key` | X | X and the next |
//! | [`Phase::Issuing`] | `X-old.crt`, `X-cross.crt` | X (what was next) | X and the old |
//!
//! `X-cross.crt` is the new authority's certificate issued by the old one. It is shown with every leaf, so whoever knows only the
//! old authority still believes the leaves of the new one: nobody is cut off before the old one is retired.
//!
//! A step is a function from files to files ([`Keys::step`]). Where they are kept, and so what makes a step happen whole or not at
//! all, is the business of others: for servers it is one write of the store (see [`crate::share`]).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use jiff::Timestamp;

use crate::cert::{Authority, new_key};
use crate::{PkiError, files, token};

pub(crate) const CA: &str = "ca";
pub(crate) const FRONT_PROXY_CA: &str = "front-proxy-ca";

/// Every file there may be. Those of the first line must be there.
const FILES: [&str; 15] = [
    "ca.crt",
    "ca.key",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "sa.key",
    "ca-next.crt",
    "ca-next.key",
    "ca-old.crt",
    "ca-cross.crt",
    "front-proxy-ca-next.crt",
    "front-proxy-ca-next.key",
    "front-proxy-ca-old.crt",
    "front-proxy-ca-cross.crt",
    "sa-next.key",
    "sa-old.pub",
];

/// What is replaced together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rotating {
    Authorities,
    AccountKey,
}

/// How far a replacement is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is being replaced.
    Steady,
    /// There is a next one, which is believed and does nothing yet.
    Trusted,
    /// The new one works, the old one is still believed.
    Issuing,
}

impl Phase {
    pub fn name(self) -> &'static str {
        match self {
            Phase::Steady => "steady",
            Phase::Trusted => "trusted",
            Phase::Issuing => "issuing",
        }
    }
}

/// What leads from phase to phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Make the next one and believe it.
    Trust,
    /// Let it work.
    Issue,
    /// Believe the old one no longer.
    Retire,
    /// Forget the next one, before it has worked.
    Cancel,
}

/// Why a step was not made.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error(transparent)]
    Pki(#[from] PkiError),
    #[error("{0}")]
    OutOfTurn(&'static str),
    #[error("{name} is damaged: {what}")]
    Damaged { name: String, what: String },
}

/// The content of the files, by name.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Keys(BTreeMap<String, String>);

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Never their content.
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Keys {
    pub(crate) fn of(content: BTreeMap<String, String>) -> Self {
        Keys(content)
    }
    pub(crate) fn content(&self) -> &BTreeMap<String, String> {
        &self.0
    }
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// What lies in `dir`.
    pub fn read(dir: &Path) -> Result<Self, PkiError> {
        let mut content = BTreeMap::new();
        for name in FILES {
            if let Some(text) = files::read(&dir.join(name))? {
                content.insert(name.to_owned(), text);
            }
        }
        Ok(Keys(content))
    }

    /// Makes `dir` hold these and no others; whether it did not.
    pub fn write(&self, dir: &Path) -> Result<bool, PkiError> {
        files::private_dir(dir)?;
        let have = Self::read(dir)?;
        let mut changed = false;
        // Certificates last: with them the identity counts as there.
        for name in FILES.iter().rev() {
            if let Some(text) = self.get(name)
                && have.get(name) != Some(text)
            {
                files::write_private(&dir.join(name), text.as_bytes())?;
                changed = true;
            }
        }
        for name in FILES {
            if self.get(name).is_none() && have.get(name).is_some() {
                let path = dir.join(name);
                fs::remove_file(&path).map_err(files::failed("remove", &path))?;
                changed = true;
            }
        }
        Ok(changed)
    }

    pub fn phase(&self, what: Rotating) -> Phase {
        let (next, old) = match what {
            Rotating::Authorities => ("ca-next.crt", "ca-old.crt"),
            Rotating::AccountKey => ("sa-next.key", "sa-old.pub"),
        };
        match (self.get(next), self.get(old)) {
            (_, Some(_)) => Phase::Issuing,
            (Some(_), None) => Phase::Trusted,
            (None, None) => Phase::Steady,
        }
    }

    /// Since when the old one does nothing, where it is still believed.
    pub fn replaced_at(&self, what: Rotating) -> Option<Timestamp> {
        let old = match what {
            Rotating::Authorities => "ca-old.crt",
            Rotating::AccountKey => "sa-old.pub",
        };
        self.get(old)?.lines().next()?.strip_prefix(SINCE)?.parse().ok()
    }

    /// What the keys are after a step.
    pub fn step(&self, what: Rotating, step: Step) -> Result<Keys, StepError> {
        let out_of_turn = |why| Err(StepError::OutOfTurn(why));
        match (self.phase(what), step) {
            (Phase::Steady, Step::Trust)
            | (Phase::Trusted, Step::Issue | Step::Cancel)
            | (Phase::Issuing, Step::Retire) => {}
            (Phase::Trusted, Step::Trust) => {
                return out_of_turn("there is a next one already; let it issue, or cancel");
            }
            (Phase::Issuing, Step::Trust | Step::Issue) => {
                return out_of_turn("the one that was replaced last is still trusted; retire it first");
            }
            (Phase::Steady, Step::Issue | Step::Cancel) => return out_of_turn("there is no next one"),
            (Phase::Steady | Phase::Trusted, Step::Retire) => return out_of_turn("there is no old one to retire"),
            (Phase::Issuing, Step::Cancel) => {
                return out_of_turn("the new one is at work already; to go back, retire the old one and begin again");
            }
        }
        let mut keys = self.clone();
        match what {
            Rotating::Authorities => {
                for name in [CA, FRONT_PROXY_CA] {
                    keys.step_authority(name, step)?;
                }
            }
            Rotating::AccountKey => keys.step_account_key(step)?,
        }
        Ok(keys)
    }

    fn take(&mut self, name: String) -> Result<String, StepError> {
        self.0.remove(&name).ok_or_else(|| StepError::Damaged {
            name,
            what: "it is missing".into(),
        })
    }

    fn step_authority(&mut self, name: &str, step: Step) -> Result<(), StepError> {
        let file = |what: &str| format!("{name}{what}");
        match step {
            Step::Trust => {
                let key = new_key("the key of the next authority")?;
                let certificate = Authority::self_signed(name, &key)?;
                self.0.insert(file("-next.key"), key.serialize_pem());
                self.0.insert(file("-next.crt"), certificate);
            }
            Step::Cancel => {
                self.0.remove(&file("-next.key"));
                self.0.remove(&file("-next.crt"));
            }
            Step::Issue => {
                let mut load = |what: &str| -> Result<(Authority, String), StepError> {
                    let (certificate, key) = (
                        self.take(format!("{name}{what}.crt"))?,
                        self.take(format!("{name}{what}.key"))?,
                    );
                    let authority = Authority::from_pem(certificate, &key).map_err(|bad| StepError::Damaged {
                        name: format!("{name}{what}"),
                        what: bad.to_string(),
                    })?;
                    Ok((authority, key))
                };
                let (old, _) = load("")?;
                let (next, key) = load("-next")?;
                self.0.insert(file("-cross.crt"), old.vouch_for(&next)?);
                self.0.insert(file("-old.crt"), since(&old.certificate_pem));
                self.0.insert(file(".crt"), next.certificate_pem);
                self.0.insert(file(".key"), key);
            }
            Step::Retire => {
                self.0.remove(&file("-old.crt"));
                self.0.remove(&file("-cross.crt"));
            }
        }
        Ok(())
    }

    fn step_account_key(&mut self, step: Step) -> Result<(), StepError> {
        match step {
            Step::Trust => {
                let key = new_key("the next key of service accounts")?;
                self.0.insert("sa-next.key".into(), key.serialize_pem());
            }
            Step::Cancel => drop(self.0.remove("sa-next.key")),
            Step::Issue => {
                let old = self.take("sa.key".into())?;
                let old = token::public_pem(&old).map_err(|what| StepError::Damaged {
                    name: "sa.key".into(),
                    what,
                })?;
                let next = self.take("sa-next.key".into())?;
                self.0.insert("sa-old.pub".into(), since(&old));
                self.0.insert("sa.key".into(), next);
            }
            Step::Retire => drop(self.0.remove("sa-old.pub")),
        }
        Ok(())
    }
}

/// Text before a PEM block is nobody's business but ours.
const SINCE: &str = "# replaced at ";

fn since(pem: &str) -> String {
    let now = Timestamp::from_second(crate::cert::unix_now()).unwrap_or_default();
    format!("{SINCE}{now}\n{pem}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Params, Pki};

    #[test]
    fn steps_come_in_turn() {
        let dir = tempfile::tempdir().unwrap();
        drop(Pki::load_or_create(dir.path(), Params::default()).unwrap());
        let first = Keys::read(dir.path()).unwrap();
        for what in [Rotating::Authorities, Rotating::AccountKey] {
            let other = match what {
                Rotating::Authorities => Rotating::AccountKey,
                Rotating::AccountKey => Rotating::Authorities,
            };
            let mut keys = first.clone();
            for (step, phase, refused) in [
                (Step::Trust, Phase::Trusted, [Step::Trust, Step::Retire].as_slice()),
                (Step::Cancel, Phase::Steady, &[Step::Issue, Step::Retire, Step::Cancel]),
                (Step::Trust, Phase::Trusted, &[]),
                (Step::Issue, Phase::Issuing, &[Step::Trust, Step::Issue, Step::Cancel]),
                (Step::Retire, Phase::Steady, &[]),
            ] {
                keys = keys.step(what, step).unwrap();
                assert_eq!(keys.phase(what), phase);
                assert_eq!(keys.phase(other), Phase::Steady);
                assert_eq!(keys.replaced_at(what).is_some(), phase == Phase::Issuing);
                for step in refused {
                    assert!(
                        matches!(keys.step(what, *step), Err(StepError::OutOfTurn(_))),
                        "{step:?}"
                    );
                }
                // What was written is what is read.
                assert!(keys.write(dir.path()).unwrap());
                assert!(!keys.write(dir.path()).unwrap());
                assert_eq!(Keys::read(dir.path()).unwrap(), keys);
                drop(Pki::load_or_create(dir.path(), Params::default()).unwrap());
            }
            assert_ne!(keys, first);
        }
        assert!(matches!(
            Keys::default()
                .step(Rotating::AccountKey, Step::Trust)
                .unwrap()
                .step(Rotating::AccountKey, Step::Issue),
            Err(StepError::Damaged { .. })
        ));
    }
}
