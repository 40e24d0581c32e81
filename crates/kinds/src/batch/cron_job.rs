//! CronJobs.

use crate::defaults::Fill;
use crate::rules::{RULES as PLAIN, Rules};
use crate::tree;
use crate::warnings;

pub(super) static RULES: Rules = Rules {
    generation: true,
    pod_spec: "spec.jobTemplate.spec.template.spec",
    defaults: &[
        ("spec", Fill::Map),
        ("spec.concurrencyPolicy", Fill::Text("Allow")),
        ("spec.suspend", Fill::Bool(false)),
        ("spec.successfulJobsHistoryLimit", Fill::Int(3)),
        ("spec.failedJobsHistoryLimit", Fill::Int(1)),
        ("spec.jobTemplate", Fill::Map),
        ("spec.jobTemplate.metadata", Fill::Map),
        ("spec.jobTemplate.spec", Fill::Map),
        ("spec.jobTemplate.spec.template", Fill::Map),
        ("spec.jobTemplate.spec.template.metadata", Fill::Map),
        ("spec.jobTemplate.spec.template.spec", Fill::Map),
        ("status", Fill::Map),
    ],
    default: |cron_job| {
        if let Some(spec) = tree::get_mut(cron_job, "spec.jobTemplate.spec") {
            super::job::default_template(spec);
        }
    },
    validate: super::validate::cron_job,
    validate_create: super::validate::cron_job_create,
    warnings: warnings::cron_job,
    ..PLAIN
};
