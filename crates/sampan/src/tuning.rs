//! Which controllers run and with what figures, under upstream's names.
//!
//! In the configuration file they stand under the key `controllers`.

use std::time::Duration;

use clap::Args;
use sampan_controllers::{Config, check_choice};
use sampan_scheduler::config::GoDuration;
use serde::Deserialize;

use crate::options::{OptionsError, invalid};

/// What may be set. `None`: not said here.
#[derive(Args, Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[command(next_help_heading = "Controllers")]
pub struct Tuning {
    /// Which controllers run: * (all of them), a name, or -name for all but that; what names one counts before *
    /// [default: *]
    #[arg(
        long,
        env = "SAMPAN_CONTROLLERS",
        value_name = "NAME,...",
        value_delimiter = ',',
        allow_hyphen_values = true
    )]
    pub controllers: Option<Vec<String>>,
    /// How long a node may be silent before it counts as gone [default: 50s]
    #[arg(long, env = "SAMPAN_NODE_MONITOR_GRACE_PERIOD", value_name = "DURATION")]
    pub node_monitor_grace_period: Option<String>,
    /// The same for a node that has never said anything [default: 1m]
    #[arg(long, env = "SAMPAN_NODE_STARTUP_GRACE_PERIOD", value_name = "DURATION")]
    pub node_startup_grace_period: Option<String>,
    /// How long a node must not be well before its Pods are driven away [default: 5s]
    #[arg(long, env = "SAMPAN_NODE_MONITOR_PERIOD", value_name = "DURATION")]
    pub node_monitor_period: Option<String>,
    /// From how many nodes of a zone Pods are driven away in a second [default: 0.1]
    #[arg(long, env = "SAMPAN_NODE_EVICTION_RATE", value_name = "NUMBER")]
    pub node_eviction_rate: Option<f32>,
    /// The same while most of a large zone is not well [default: 0.01]
    #[arg(long, env = "SAMPAN_SECONDARY_NODE_EVICTION_RATE", value_name = "NUMBER")]
    pub secondary_node_eviction_rate: Option<f32>,
    /// The share of a zone's nodes from which on that is most of it, at least three [default: 0.55]
    #[arg(long, env = "SAMPAN_UNHEALTHY_ZONE_THRESHOLD", value_name = "NUMBER")]
    pub unhealthy_zone_threshold: Option<f32>,
    /// Zones of up to so many nodes drive nobody away while most of them is not well [default: 50]
    #[arg(long, env = "SAMPAN_LARGE_CLUSTER_SIZE_THRESHOLD", value_name = "NUMBER")]
    pub large_cluster_size_threshold: Option<usize>,
    /// How many finished Pods are kept; 0 keeps all [default: 12500]
    #[arg(long, env = "SAMPAN_TERMINATED_POD_GC_THRESHOLD", value_name = "NUMBER")]
    pub terminated_pod_gc_threshold: Option<usize>,
    /// How long a token that was made automatically must have been out of use before it is removed [default: 8760h]
    #[arg(
        long,
        env = "SAMPAN_LEGACY_SERVICE_ACCOUNT_TOKEN_CLEAN_UP_PERIOD",
        value_name = "DURATION"
    )]
    pub legacy_service_account_token_clean_up_period: Option<String>,
    /// The prefix length of a node's range of Pod addresses [default: 24]
    #[arg(
        long,
        env = "SAMPAN_NODE_CIDR_MASK_SIZE_IPV4",
        value_name = "BITS",
        alias = "node-cidr-mask-size"
    )]
    pub node_cidr_mask_size_ipv4: Option<u8>,
    /// The same for its IPv6 range [default: 64]
    #[arg(long, env = "SAMPAN_NODE_CIDR_MASK_SIZE_IPV6", value_name = "BITS")]
    pub node_cidr_mask_size_ipv6: Option<u8>,
    /// How often each autoscaler is looked at [default: 15s]
    #[arg(long, env = "SAMPAN_HORIZONTAL_POD_AUTOSCALER_SYNC_PERIOD", value_name = "DURATION")]
    pub horizontal_pod_autoscaler_sync_period: Option<String>,
    /// How far usage may be off its target without consequence, as a part of it [default: 0.1]
    #[arg(long, env = "SAMPAN_HORIZONTAL_POD_AUTOSCALER_TOLERANCE", value_name = "NUMBER")]
    pub horizontal_pod_autoscaler_tolerance: Option<f64>,
    /// How long a recommendation to shrink waits for a higher one [default: 5m]
    #[arg(
        long,
        env = "SAMPAN_HORIZONTAL_POD_AUTOSCALER_DOWNSCALE_STABILIZATION",
        value_name = "DURATION"
    )]
    pub horizontal_pod_autoscaler_downscale_stabilization: Option<String>,
    /// How long after a Pod's start its processor time may be that of its start [default: 5m]
    #[arg(
        long,
        env = "SAMPAN_HORIZONTAL_POD_AUTOSCALER_CPU_INITIALIZATION_PERIOD",
        value_name = "DURATION"
    )]
    pub horizontal_pod_autoscaler_cpu_initialization_period: Option<String>,
    /// How long after its start a Pod may become unready and count as never having been ready [default: 30s]
    #[arg(
        long,
        env = "SAMPAN_HORIZONTAL_POD_AUTOSCALER_INITIAL_READINESS_DELAY",
        value_name = "DURATION"
    )]
    pub horizontal_pod_autoscaler_initial_readiness_delay: Option<String>,
}

impl Tuning {
    pub fn over(self, file: Tuning) -> Tuning {
        macro_rules! over {
            ($($field:ident),* $(,)?) => { Tuning { $($field: self.$field.or(file.$field)),* } };
        }
        over! {
            controllers,
            node_monitor_grace_period,
            node_startup_grace_period,
            node_monitor_period,
            node_eviction_rate,
            secondary_node_eviction_rate,
            unhealthy_zone_threshold,
            large_cluster_size_threshold,
            terminated_pod_gc_threshold,
            legacy_service_account_token_clean_up_period,
            node_cidr_mask_size_ipv4,
            node_cidr_mask_size_ipv6,
            horizontal_pod_autoscaler_sync_period,
            horizontal_pod_autoscaler_tolerance,
            horizontal_pod_autoscaler_downscale_stabilization,
            horizontal_pod_autoscaler_cpu_initialization_period,
            horizontal_pod_autoscaler_initial_readiness_delay,
        }
    }

    /// Puts what is said into `config`.
    pub fn apply(&self, config: &mut Config) -> Result<(), OptionsError> {
        if let Some(asked) = &self.controllers {
            check_choice(asked).map_err(|unknown| invalid("--controllers", asked.join(","), unknown.to_string()))?;
            config.enabled.clone_from(asked);
        }
        let nodes = &mut config.nodes;
        let scaler = &mut config.autoscaler;
        let durations = [
            (
                "--node-monitor-grace-period",
                &self.node_monitor_grace_period,
                &mut nodes.monitor_grace_period,
            ),
            (
                "--node-startup-grace-period",
                &self.node_startup_grace_period,
                &mut nodes.startup_grace_period,
            ),
            ("--node-monitor-period", &self.node_monitor_period, &mut nodes.settle),
            (
                "--legacy-service-account-token-clean-up-period",
                &self.legacy_service_account_token_clean_up_period,
                &mut config.token_clean_up_period,
            ),
            (
                "--horizontal-pod-autoscaler-sync-period",
                &self.horizontal_pod_autoscaler_sync_period,
                &mut scaler.period,
            ),
            (
                "--horizontal-pod-autoscaler-downscale-stabilization",
                &self.horizontal_pod_autoscaler_downscale_stabilization,
                &mut scaler.downscale_stabilization,
            ),
            (
                "--horizontal-pod-autoscaler-cpu-initialization-period",
                &self.horizontal_pod_autoscaler_cpu_initialization_period,
                &mut scaler.cpu_initialization,
            ),
            (
                "--horizontal-pod-autoscaler-initial-readiness-delay",
                &self.horizontal_pod_autoscaler_initial_readiness_delay,
                &mut scaler.initial_readiness_delay,
            ),
        ];
        for (option, given, field) in durations {
            if let Some(text) = given {
                *field = duration(option, text)?;
            }
        }
        let rates = [
            (
                "--node-eviction-rate",
                self.node_eviction_rate,
                &mut nodes.eviction_rate,
            ),
            (
                "--secondary-node-eviction-rate",
                self.secondary_node_eviction_rate,
                &mut nodes.secondary_eviction_rate,
            ),
            (
                "--unhealthy-zone-threshold",
                self.unhealthy_zone_threshold,
                &mut nodes.unhealthy_zone,
            ),
        ];
        for (option, given, field) in rates {
            if let Some(rate) = given {
                if !(rate.is_finite() && rate >= 0.0) {
                    return Err(invalid(option, rate, "give a number, zero or more"));
                }
                *field = rate;
            }
        }
        if let Some(tolerance) = self.horizontal_pod_autoscaler_tolerance {
            if !(tolerance.is_finite() && tolerance >= 0.0) {
                let why = "give a number, zero or more";
                return Err(invalid("--horizontal-pod-autoscaler-tolerance", tolerance, why));
            }
            scaler.tolerance = tolerance;
        }
        let masks = [
            (
                "--node-cidr-mask-size-ipv4",
                self.node_cidr_mask_size_ipv4,
                32,
                &mut config.node_mask,
            ),
            (
                "--node-cidr-mask-size-ipv6",
                self.node_cidr_mask_size_ipv6,
                128,
                &mut config.node_mask_v6,
            ),
        ];
        for (option, given, most, field) in masks {
            if let Some(bits) = given {
                if bits > most {
                    return Err(invalid(option, bits, format!("give a prefix length up to {most}")));
                }
                *field = bits;
            }
        }
        if let Some(nodes_of_zone) = self.large_cluster_size_threshold {
            nodes.large_cluster = nodes_of_zone;
        }
        if let Some(pods) = self.terminated_pod_gc_threshold {
            config.terminated_pods = pods;
        }
        Ok(())
    }
}

fn duration(option: &'static str, text: &str) -> Result<Duration, OptionsError> {
    GoDuration::parse(text)
        .filter(|length| length.0 > 0)
        .and_then(|length| u64::try_from(length.0).ok())
        .map(Duration::from_nanos)
        .ok_or_else(|| invalid(option, text, "give a time such as 50s"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_counts_and_the_rest_stays() {
        let flags = Tuning {
            node_monitor_grace_period: Some("20s".into()),
            node_eviction_rate: Some(0.0),
            ..Tuning::default()
        };
        let file = Tuning {
            node_monitor_grace_period: Some("5m".into()),
            horizontal_pod_autoscaler_sync_period: Some("1m30s".into()),
            ..Tuning::default()
        };
        let mut config = Config::default();
        let file = Tuning {
            controllers: Some(vec!["*".into(), "-job-controller".into()]),
            ..file
        };
        flags.over(file).apply(&mut config).unwrap();
        assert_eq!(config.nodes.monitor_grace_period, Duration::from_secs(20));
        assert_eq!(config.nodes.startup_grace_period, Duration::from_secs(60));
        assert_eq!(config.nodes.eviction_rate, 0.0);
        assert_eq!(config.autoscaler.period, Duration::from_secs(90));
        assert_eq!(config.enabled, ["*", "-job-controller"]);
        let wrong = [
            Tuning {
                controllers: Some(vec!["*".into(), "-nonsense-controller".into()]),
                ..Tuning::default()
            },
            Tuning {
                node_monitor_period: Some("soon".into()),
                ..Tuning::default()
            },
            Tuning {
                node_eviction_rate: Some(-1.0),
                ..Tuning::default()
            },
            Tuning {
                node_cidr_mask_size_ipv4: Some(33),
                ..Tuning::default()
            },
        ];
        for tuning in wrong {
            assert!(tuning.apply(&mut Config::default()).is_err(), "{tuning:?}");
        }
    }
}
