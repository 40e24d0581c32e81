//! `batch/v1`: Jobs and CronJobs.

mod cron;
mod cron_job;
mod indexed;
mod job;
mod job_status;
mod print;
mod validate;

use crate::spec::{Resource, SelectableField};
use crate::table::{row, status};
use crate::tree;

const GROUP: &str = "batch";

pub(crate) static RESOURCES: &[Resource] = &[
    Resource {
        short_names: &["cj"],
        categories: &["all"],
        subresources: &[status("CronJob")],
        columns: print::CRON_JOB,
        cells: print::cron_job,
        strategy: &cron_job::RULES,
        ..row(GROUP, "CronJob", "CronJobList", "cronjobs", "cronjob")
    },
    Resource {
        categories: &["all"],
        subresources: &[status("Job")],
        columns: print::JOB,
        cells: print::job,
        fields: &[SelectableField {
            label: "status.successful",
            read: |job| tree::int(job, "status.succeeded").to_string(),
        }],
        strategy: &job::RULES,
        ..row(GROUP, "Job", "JobList", "jobs", "job")
    },
];
