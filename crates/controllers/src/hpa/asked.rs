//! One look's metrics, asked one by one: what each of them says, how many replicas that makes, and what the status tells of it.
//!
//! Nothing is decided here beyond the single metric; [`super::replicas`] holds the arithmetic.

use std::sync::Arc;

use jiff::SignedDuration;
use k8s_openapi::api::autoscaling::v2::{
    ContainerResourceMetricStatus, ExternalMetricStatus, MetricIdentifier, MetricSpec, MetricStatus, MetricTarget,
    MetricValueStatus, ObjectMetricStatus, PodsMetricStatus, ResourceMetricStatus,
};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Text;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector as LabelSelectorText;
use sampan_api::quantity::{Format, Quantity};
use sampan_api::selector::LabelSelector;
use sampan_client::owner;

use super::look::{Failure, Proposal};
use super::metrics::{Described, Place, go_selector};
use super::replicas::{self, Readiness, Target, Tolerances};
use super::{Controller, group_of};

/// What the metrics of one look are asked with.
pub(super) struct Asked<'a> {
    pub(super) controller: &'a Controller,
    pub(super) namespace: &'a str,
    pub(super) selector: &'a LabelSelector,
    pub(super) pods: &'a [Arc<Pod>],
    pub(super) current: i32,
    /// Replicas there are, by the scale's status.
    pub(super) observed: i32,
    pub(super) tolerances: Tolerances,
}

/// An amount in thousandths, as text.
fn quantity(milli: i64, resource: &str) -> Text {
    let format = if resource == "memory" {
        Format::BinarySi
    } else {
        Format::DecimalSi
    };
    Text(Quantity::milli(milli, format).to_string())
}

fn milli(target: Option<&Text>) -> Option<i64> {
    Some(Quantity::parse(&target?.0).ok()?.milli_value())
}

/// What a metric is called where `kubectl` and others read of it.
fn external_name(metric: &MetricIdentifier) -> String {
    format!(
        "external metric {}({})",
        metric.name,
        go_selector(metric.selector.as_ref())
    )
}

fn selector_text(selector: Option<&LabelSelectorText>) -> String {
    owner::selector(selector).map_or_else(String::new, |selector| selector.to_string())
}

impl Asked<'_> {
    fn readiness(&self) -> Readiness {
        let context = &self.controller.context;
        let span = |duration| SignedDuration::try_from(duration).unwrap_or(SignedDuration::MAX);
        Readiness {
            now: context.clock.now(),
            cpu_initialization: span(context.config.autoscaler.cpu_initialization),
            initial_delay: span(context.config.autoscaler.initial_readiness_delay),
        }
    }

    pub(super) async fn metric(&self, spec: &MetricSpec) -> Result<Proposal, Failure> {
        let (reason, prefix, found) = if let Some(source) = &spec.resource {
            let found = self.resource(&source.target, &source.name, "").await;
            let found = found.map(|(replicas, name, current)| Proposal {
                replicas,
                name,
                status: MetricStatus {
                    type_: spec.type_.clone(),
                    resource: Some(ResourceMetricStatus {
                        name: source.name.clone(),
                        current,
                    }),
                    ..Default::default()
                },
            });
            let prefix = format!("failed to get {} resource metric value", source.name);
            ("FailedGetResourceMetric", prefix, found)
        } else if let Some(source) = &spec.container_resource {
            let found = self.resource(&source.target, &source.name, &source.container).await;
            let found = found.map(|(replicas, name, current)| Proposal {
                replicas,
                name,
                status: MetricStatus {
                    type_: spec.type_.clone(),
                    container_resource: Some(ContainerResourceMetricStatus {
                        name: source.name.clone(),
                        container: source.container.clone(),
                        current,
                    }),
                    ..Default::default()
                },
            });
            let prefix = format!("failed to get {} container metric value", source.container);
            ("FailedGetContainerResourceMetric", prefix, found)
        } else if spec.pods.is_some() {
            let prefix = "failed to get pods metric value".to_owned();
            ("FailedGetPodsMetric", prefix, self.of_pods(spec).await)
        } else if spec.object.is_some() {
            let prefix = "failed to get object metric value".to_owned();
            ("FailedGetObjectMetric", prefix, self.object(spec).await)
        } else if let Some(source) = &spec.external {
            let prefix = format!("failed to get {} external metric value", source.metric.name);
            ("FailedGetExternalMetric", prefix, self.external(spec).await)
        } else {
            let error = format!("unknown metric source type {:?}", spec.type_);
            return Err(Failure {
                reason: super::MISDEFINED,
                message: error.clone(),
                error,
            });
        };
        found.map_err(|(message, error)| Failure {
            reason,
            message,
            error: format!("{prefix}: {error}"),
        })
    }

    /// Of Pods or of one container of each.
    async fn resource(
        &self,
        target: &MetricTarget,
        resource: &str,
        container: &str,
    ) -> Result<(i32, String, MetricValueStatus), (String, String)> {
        let found = self.resource_usage(target, resource, container).await;
        found.map_err(|error| (error.clone(), error))
    }

    async fn resource_usage(
        &self,
        target: &MetricTarget,
        resource: &str,
        container: &str,
    ) -> Result<(i32, String, MetricValueStatus), String> {
        let average = milli(target.average_value.as_ref());
        let (what, name) = match (average, target.average_utilization) {
            (Some(_), _) => ("usage", format!("{resource} resource")),
            (None, Some(_)) => {
                let of = if container.is_empty() {
                    "resource"
                } else {
                    "container resource"
                };
                (
                    "utilization",
                    format!("{resource} {of} utilization (percentage of request)"),
                )
            }
            (None, None) => {
                return Err("invalid resource metric source: neither an average utilization target nor an average value (usage) target was set".into());
            }
        };
        let failed = |error: String| format!("failed to get {resource} {what}: {error}");
        let selector = self.selector.to_string();
        let metrics = self
            .controller
            .metrics
            .resource(resource, self.namespace, &selector, container);
        let metrics = metrics
            .await
            .map_err(|error| failed(format!("unable to get metrics for resource {resource}: {error}")))?;
        let target = || match (average, target.average_utilization) {
            (Some(average), _) => Ok(Target::Average(average)),
            (None, percent) => Ok(Target::Utilization {
                percent: percent.unwrap_or_default(),
                requests: replicas::requests(self.pods, container, resource)?,
            }),
        };
        let cpu = resource == "cpu";
        let found = replicas::for_pods(
            self.current,
            self.pods,
            metrics,
            cpu,
            self.readiness(),
            self.tolerances,
            target,
        );
        let (wanted, usage) = found.map_err(failed)?;
        let status = MetricValueStatus {
            average_utilization: usage.utilization,
            average_value: Some(quantity(usage.average, resource)),
            value: None,
        };
        Ok((wanted, name, status))
    }

    async fn of_pods(&self, spec: &MetricSpec) -> Result<Proposal, (String, String)> {
        let twice = |error: String| (error.clone(), error);
        let Some(source) = &spec.pods else {
            return Err(twice("invalid pods metric source".into()));
        };
        let metric = &source.metric;
        let (selector, own) = (self.selector.to_string(), selector_text(metric.selector.as_ref()));
        let metrics = self
            .controller
            .metrics
            .pods(&metric.name, self.namespace, &selector, &own);
        let metrics = metrics
            .await
            .map_err(|error| twice(format!("unable to get metric {}: {error}", metric.name)))?;
        let target = || {
            milli(source.target.average_value.as_ref())
                .map(Target::Average)
                .ok_or_else(|| "invalid pods metric source: no average value target was set".to_owned())
        };
        let found = replicas::for_pods(
            self.current,
            self.pods,
            metrics,
            false,
            self.readiness(),
            self.tolerances,
            target,
        );
        let (replicas, usage) = found.map_err(twice)?;
        Ok(Proposal {
            replicas,
            name: format!("pods metric {}", metric.name),
            status: MetricStatus {
                type_: spec.type_.clone(),
                pods: Some(PodsMetricStatus {
                    metric: metric.clone(),
                    current: MetricValueStatus {
                        average_value: Some(quantity(usage.average, "")),
                        ..Default::default()
                    },
                }),
                ..Default::default()
            },
        })
    }

    async fn object(&self, spec: &MetricSpec) -> Result<Proposal, (String, String)> {
        let twice = |error: String| (error.clone(), error);
        let Some(source) = &spec.object else {
            return Err(twice("invalid object metric source".into()));
        };
        let (metric, described) = (&source.metric, &source.described_object);
        let value = async {
            let kind = described.kind.as_str();
            let group = group_of(described.api_version.as_deref().unwrap_or_default())?;
            let resource = if (group, kind) == ("", "Namespace") {
                String::new()
            } else {
                let client = &self.controller.context.client;
                let places = self.controller.places.of(client, group, kind).await;
                let unable = |error| {
                    let group = if group.is_empty() {
                        String::new()
                    } else {
                        format!(".{group}")
                    };
                    format!(
                        "unable to fetch metrics from custom metrics API: unable to map kind {kind}{group} to resource: {error}"
                    )
                };
                places
                    .map_err(unable)?
                    .first()
                    .map(Place::qualified)
                    .unwrap_or_default()
            };
            let object = Described {
                resource: &resource,
                name: &described.name,
            };
            let own = selector_text(metric.selector.as_ref());
            self.controller
                .metrics
                .object(&metric.name, self.namespace, &object, &own)
                .await
        };
        let value = value.await.map_err(|error: String| {
            let about = format!("{} {}/{}", described.kind, self.namespace, described.name);
            format!("unable to get metric {}: {error} on {about}", metric.name)
        });
        let target = &source.target;
        let status = |current| MetricStatus {
            type_: spec.type_.clone(),
            object: Some(ObjectMetricStatus {
                described_object: described.clone(),
                metric: metric.clone(),
                current,
            }),
            ..Default::default()
        };
        match (
            target.type_.as_str(),
            milli(target.value.as_ref()),
            milli(target.average_value.as_ref()),
        ) {
            ("Value", Some(target), _) => {
                let value = value.map_err(twice)?;
                let replicas = replicas::for_value(self.current, self.pods, value, target, self.tolerances);
                Ok(Proposal {
                    replicas: replicas.map_err(twice)?,
                    name: format!("{} metric {}", described.kind, metric.name),
                    status: status(MetricValueStatus {
                        value: Some(quantity(value, "")),
                        ..Default::default()
                    }),
                })
            }
            ("AverageValue", _, Some(target)) => {
                let failed = |error: String| {
                    let whole = format!("failed to get {} object metric: {error}", metric.name);
                    (error, whole)
                };
                let value = value.map_err(failed)?;
                let (replicas, share) = replicas::for_share(self.observed, value, target, self.tolerances);
                Ok(Proposal {
                    replicas,
                    name: external_name(metric),
                    status: status(MetricValueStatus {
                        average_value: Some(quantity(share, "")),
                        ..Default::default()
                    }),
                })
            }
            _ => Err(twice(
                "invalid object metric source: neither a value target nor an average value target was set".into(),
            )),
        }
    }

    async fn external(&self, spec: &MetricSpec) -> Result<Proposal, (String, String)> {
        let twice = |error: String| (error.clone(), error);
        let Some(source) = &spec.external else {
            return Err(twice("invalid external metric source".into()));
        };
        let metric = &source.metric;
        let name = &metric.name;
        let (average, whole) = (
            milli(source.target.average_value.as_ref()),
            milli(source.target.value.as_ref()),
        );
        if average.is_none() && whole.is_none() {
            return Err(twice(
                "invalid external metric source: neither a value target nor an average value target was set".into(),
            ));
        }
        let own = selector_text(metric.selector.as_ref());
        let values = self.controller.metrics.external(name, self.namespace, &own).await;
        let values = values.map_err(|error| {
            let namespace = self.namespace;
            let selector = go_selector(metric.selector.as_ref());
            format!("unable to get external metric {namespace}/{name}/{selector}: {error}")
        });
        let failed = |error: String| {
            let whole = match average {
                Some(_) => format!("failed to get {name} external metric: {error}"),
                None => format!("failed to get external metric {name}: {error}"),
            };
            (error, whole)
        };
        let sum = values.map_err(failed)?.into_iter().fold(0i64, i64::saturating_add);
        let (replicas, current) = match (average, whole) {
            (Some(average), _) => {
                let (replicas, share) = replicas::for_share(self.observed, sum, average, self.tolerances);
                let current = MetricValueStatus {
                    average_value: Some(quantity(share, "")),
                    ..Default::default()
                };
                (replicas, current)
            }
            (None, target) => {
                let target = target.unwrap_or_default();
                let replicas = replicas::for_value(self.current, self.pods, sum, target, self.tolerances);
                let current = MetricValueStatus {
                    value: Some(quantity(sum, "")),
                    ..Default::default()
                };
                (replicas.map_err(failed)?, current)
            }
        };
        Ok(Proposal {
            replicas,
            name: external_name(metric),
            status: MetricStatus {
                type_: spec.type_.clone(),
                external: Some(ExternalMetricStatus {
                    metric: metric.clone(),
                    current,
                }),
                ..Default::default()
            },
        })
    }
}
