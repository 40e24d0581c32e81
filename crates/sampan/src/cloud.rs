//! What a machine's Node is born with: the hook of a cloud provider outside, and taints.
//!
//! In the configuration file they stand under the key `cloud`.

use clap::Args;
use k8s_openapi::api::core::v1::Taint;
use sampan_node::Registration;
use serde::Deserialize;

use crate::options::{OptionsError, invalid};

/// Who says what the machine's addresses are.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Provider {
    /// A cloud controller manager
    External,
}

/// What may be set. `None`: not said here.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[command(next_help_heading = "The machine's Node")]
pub struct Cloud {
    /// external: a cloud controller manager runs in the cluster. The Node gets a taint that it takes away again, and its
    /// addresses are what it says
    #[arg(long, env = "SAMPAN_CLOUD_PROVIDER", value_name = "external")]
    pub cloud_provider: Option<Provider>,
    /// What the cloud provider calls this machine
    #[arg(long, env = "SAMPAN_PROVIDER_ID", value_name = "ID")]
    pub provider_id: Option<String>,
    /// Taints to register the Node with, as KEY=VALUE:EFFECT; later changes are the administrator's
    #[arg(
        long,
        env = "SAMPAN_REGISTER_WITH_TAINTS",
        value_name = "TAINT,...",
        value_delimiter = ','
    )]
    pub register_with_taints: Option<Vec<String>>,
}

impl Cloud {
    pub fn over(self, file: Cloud) -> Cloud {
        Cloud {
            cloud_provider: self.cloud_provider.or(file.cloud_provider),
            provider_id: self.provider_id.or(file.provider_id),
            register_with_taints: self.register_with_taints.or(file.register_with_taints),
        }
    }

    pub fn settle(self, address_given: bool) -> Result<Registration, OptionsError> {
        let taints = self.register_with_taints.unwrap_or_default();
        let taints: Result<Vec<Taint>, OptionsError> = taints.iter().map(|text| taint(text)).collect();
        Ok(Registration {
            external_cloud: self.cloud_provider == Some(Provider::External),
            address_given,
            provider_id: self.provider_id,
            taints: taints?,
        })
    }
}

fn taint(text: &str) -> Result<Taint, OptionsError> {
    let refuse = |why: &str| invalid("--register-with-taints", text, why);
    let form = "write taints as KEY=VALUE:EFFECT or KEY:EFFECT";
    let (what, effect) = text.rsplit_once(':').ok_or_else(|| refuse(form))?;
    if !["NoSchedule", "PreferNoSchedule", "NoExecute"].contains(&effect) {
        return Err(refuse("the effect is NoSchedule, PreferNoSchedule or NoExecute"));
    }
    let (key, value) = match what.split_once('=') {
        Some((key, value)) => (key, Some(value)),
        None => (what, None),
    };
    let wrong = sampan_api::names::qualified_name(key);
    if let Some(why) = wrong.first() {
        return Err(refuse(&format!("the key {key:?}: {why}")));
    }
    Ok(Taint {
        key: key.to_owned(),
        value: value.filter(|value| !value.is_empty()).map(str::to_owned),
        effect: effect.to_owned(),
        time_added: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taints_as_they_are_written() {
        let read = |text: &str| {
            taint(text)
                .map(|taint| (taint.key, taint.value.unwrap_or_default(), taint.effect))
                .ok()
        };
        let owned = |key: &str, value: &str, effect: &str| Some((key.to_owned(), value.to_owned(), effect.to_owned()));
        assert_eq!(read("a=b:NoSchedule"), owned("a", "b", "NoSchedule"));
        assert_eq!(
            read("example.com/gpu:NoExecute"),
            owned("example.com/gpu", "", "NoExecute")
        );
        assert_eq!(read("a=:PreferNoSchedule"), owned("a", "", "PreferNoSchedule"));
        for wrong in ["a=b", "a:Never", ":NoSchedule", "a b:NoSchedule", ""] {
            assert_eq!(read(wrong), None, "{wrong}");
        }
    }
}
