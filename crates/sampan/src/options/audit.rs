//! The options of the audit log: upstream's flags, under upstream's names and with its defaults.
//!
//! In the configuration file they stand under the key `audit`.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use sampan_apiserver::audit::{
    self, BatchOptions, Format, LogOptions, Mode, Options, Rotation, Truncation, WebhookOptions,
};
use sampan_apiserver::request::go_duration;
use serde::Deserialize;

use super::{OptionsError, invalid};

/// What may be set. `None`: not said here.
#[derive(Args, Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
#[command(next_help_heading = "Audit")]
pub struct AuditOptions {
    /// The audit policy: which requests are recorded, and how much of them
    #[arg(long, env = "SAMPAN_AUDIT_POLICY_FILE", value_name = "FILE")]
    pub audit_policy_file: Option<PathBuf>,
    /// Where audit events are written; - is standard output
    #[arg(long, env = "SAMPAN_AUDIT_LOG_PATH", value_name = "FILE")]
    pub audit_log_path: Option<PathBuf>,
    /// How they are written [default: json]
    #[arg(long, env = "SAMPAN_AUDIT_LOG_FORMAT", value_name = "FORMAT")]
    pub audit_log_format: Option<LogFormat>,
    /// The API version they are written in; there is one
    #[arg(long, env = "SAMPAN_AUDIT_LOG_VERSION", value_name = "GROUP/VERSION")]
    pub audit_log_version: Option<String>,
    /// Days that rotated audit logs are kept; 0: forever [default: 366]
    #[arg(long, env = "SAMPAN_AUDIT_LOG_MAXAGE", value_name = "DAYS")]
    pub audit_log_maxage: Option<u64>,
    /// Rotated audit logs that are kept; 0: all [default: 100]
    #[arg(long, env = "SAMPAN_AUDIT_LOG_MAXBACKUP", value_name = "NUMBER")]
    pub audit_log_maxbackup: Option<usize>,
    /// Megabytes after which the audit log is rotated; 0: never [default: 100]
    #[arg(long, env = "SAMPAN_AUDIT_LOG_MAXSIZE", value_name = "MEGABYTES")]
    pub audit_log_maxsize: Option<u64>,
    /// Compress rotated audit logs
    #[arg(long, env = "SAMPAN_AUDIT_LOG_COMPRESS", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub audit_log_compress: Option<bool>,
    /// Whether requests wait for the audit log [default: blocking]
    #[arg(long, env = "SAMPAN_AUDIT_LOG_MODE", value_name = "MODE")]
    pub audit_log_mode: Option<AuditMode>,
    /// Events that may wait for the audit log (mode batch) [default: 10000]
    #[arg(long, env = "SAMPAN_AUDIT_LOG_BATCH_BUFFER_SIZE", value_name = "NUMBER")]
    pub audit_log_batch_buffer_size: Option<usize>,
    /// Events that are written at once (mode batch) [default: 1]
    #[arg(long, env = "SAMPAN_AUDIT_LOG_BATCH_MAX_SIZE", value_name = "NUMBER")]
    pub audit_log_batch_max_size: Option<usize>,
    /// How long a batch waits for more (mode batch) [default: 0s]
    #[arg(long, env = "SAMPAN_AUDIT_LOG_BATCH_MAX_WAIT", value_name = "DURATION")]
    pub audit_log_batch_max_wait: Option<String>,
    /// Whether batches have a rate (mode batch) [default: false]
    #[arg(long, env = "SAMPAN_AUDIT_LOG_BATCH_THROTTLE_ENABLE", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub audit_log_batch_throttle_enable: Option<bool>,
    /// Batches a second (mode batch)
    #[arg(long, env = "SAMPAN_AUDIT_LOG_BATCH_THROTTLE_QPS", value_name = "NUMBER")]
    pub audit_log_batch_throttle_qps: Option<f64>,
    /// Batches at once after a pause (mode batch)
    #[arg(long, env = "SAMPAN_AUDIT_LOG_BATCH_THROTTLE_BURST", value_name = "NUMBER")]
    pub audit_log_batch_throttle_burst: Option<usize>,
    /// Cut events that are too large [default: false]
    #[arg(long, env = "SAMPAN_AUDIT_LOG_TRUNCATE_ENABLED", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub audit_log_truncate_enabled: Option<bool>,
    /// Bytes a batch may have [default: 10485760]
    #[arg(long, env = "SAMPAN_AUDIT_LOG_TRUNCATE_MAX_BATCH_SIZE", value_name = "BYTES")]
    pub audit_log_truncate_max_batch_size: Option<usize>,
    /// Bytes an event may have; a larger one loses its objects first [default: 102400]
    #[arg(long, env = "SAMPAN_AUDIT_LOG_TRUNCATE_MAX_EVENT_SIZE", value_name = "BYTES")]
    pub audit_log_truncate_max_event_size: Option<usize>,
    /// A kubeconfig that says where audit events are sent
    #[arg(long, env = "SAMPAN_AUDIT_WEBHOOK_CONFIG_FILE", value_name = "FILE")]
    pub audit_webhook_config_file: Option<PathBuf>,
    /// The pause after the first failure; later ones are longer [default: 10s]
    #[arg(
        long,
        env = "SAMPAN_AUDIT_WEBHOOK_INITIAL_BACKOFF",
        value_name = "DURATION",
        alias = "audit-webhook-batch-initial-backoff"
    )]
    pub audit_webhook_initial_backoff: Option<String>,
    /// The API version events are sent in; there is one
    #[arg(long, env = "SAMPAN_AUDIT_WEBHOOK_VERSION", value_name = "GROUP/VERSION")]
    pub audit_webhook_version: Option<String>,
    /// Whether requests wait for the webhook [default: batch]
    #[arg(long, env = "SAMPAN_AUDIT_WEBHOOK_MODE", value_name = "MODE")]
    pub audit_webhook_mode: Option<AuditMode>,
    /// Events that may wait for the webhook (mode batch) [default: 10000]
    #[arg(long, env = "SAMPAN_AUDIT_WEBHOOK_BATCH_BUFFER_SIZE", value_name = "NUMBER")]
    pub audit_webhook_batch_buffer_size: Option<usize>,
    /// Events that are sent at once (mode batch) [default: 400]
    #[arg(long, env = "SAMPAN_AUDIT_WEBHOOK_BATCH_MAX_SIZE", value_name = "NUMBER")]
    pub audit_webhook_batch_max_size: Option<usize>,
    /// How long a batch waits for more (mode batch) [default: 30s]
    #[arg(long, env = "SAMPAN_AUDIT_WEBHOOK_BATCH_MAX_WAIT", value_name = "DURATION")]
    pub audit_webhook_batch_max_wait: Option<String>,
    /// Whether batches have a rate (mode batch) [default: true]
    #[arg(long, env = "SAMPAN_AUDIT_WEBHOOK_BATCH_THROTTLE_ENABLE", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub audit_webhook_batch_throttle_enable: Option<bool>,
    /// Batches a second (mode batch) [default: 10]
    #[arg(long, env = "SAMPAN_AUDIT_WEBHOOK_BATCH_THROTTLE_QPS", value_name = "NUMBER")]
    pub audit_webhook_batch_throttle_qps: Option<f64>,
    /// Batches at once after a pause (mode batch) [default: 15]
    #[arg(long, env = "SAMPAN_AUDIT_WEBHOOK_BATCH_THROTTLE_BURST", value_name = "NUMBER")]
    pub audit_webhook_batch_throttle_burst: Option<usize>,
    /// Cut events that are too large [default: false]
    #[arg(long, env = "SAMPAN_AUDIT_WEBHOOK_TRUNCATE_ENABLED", value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub audit_webhook_truncate_enabled: Option<bool>,
    /// Bytes a batch may have; a larger one is divided [default: 10485760]
    #[arg(long, env = "SAMPAN_AUDIT_WEBHOOK_TRUNCATE_MAX_BATCH_SIZE", value_name = "BYTES")]
    pub audit_webhook_truncate_max_batch_size: Option<usize>,
    /// Bytes an event may have; a larger one loses its objects first [default: 102400]
    #[arg(long, env = "SAMPAN_AUDIT_WEBHOOK_TRUNCATE_MAX_EVENT_SIZE", value_name = "BYTES")]
    pub audit_webhook_truncate_max_event_size: Option<usize>,
}

/// How audit events are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// A JSON object a line
    Json,
    /// A line of text
    Legacy,
}

/// Whether requests wait for a back end of the audit log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuditMode {
    /// No request waits; what does not fit is dropped and counted
    Batch,
    /// Answers wait until their events are delivered
    Blocking,
    /// As blocking, and a request whose first event is lost is refused
    BlockingStrict,
}

impl From<AuditMode> for Mode {
    fn from(mode: AuditMode) -> Self {
        match mode {
            AuditMode::Batch => Mode::Batch,
            AuditMode::Blocking => Mode::Blocking,
            AuditMode::BlockingStrict => Mode::BlockingStrict,
        }
    }
}

macro_rules! over {
    ($this:ident, $file:ident, $($field:ident),* $(,)?) => {
        AuditOptions { $($field: $this.$field.or($file.$field)),* }
    };
}

impl AuditOptions {
    /// What is said here, and for the rest what `file` says.
    pub fn over(self, file: AuditOptions) -> AuditOptions {
        over!(
            self,
            file,
            audit_policy_file,
            audit_log_path,
            audit_log_format,
            audit_log_version,
            audit_log_maxage,
            audit_log_maxbackup,
            audit_log_maxsize,
            audit_log_compress,
            audit_log_mode,
            audit_log_batch_buffer_size,
            audit_log_batch_max_size,
            audit_log_batch_max_wait,
            audit_log_batch_throttle_enable,
            audit_log_batch_throttle_qps,
            audit_log_batch_throttle_burst,
            audit_log_truncate_enabled,
            audit_log_truncate_max_batch_size,
            audit_log_truncate_max_event_size,
            audit_webhook_config_file,
            audit_webhook_initial_backoff,
            audit_webhook_version,
            audit_webhook_mode,
            audit_webhook_batch_buffer_size,
            audit_webhook_batch_max_size,
            audit_webhook_batch_max_wait,
            audit_webhook_batch_throttle_enable,
            audit_webhook_batch_throttle_qps,
            audit_webhook_batch_throttle_burst,
            audit_webhook_truncate_enabled,
            audit_webhook_truncate_max_batch_size,
            audit_webhook_truncate_max_event_size,
        )
    }

    /// Everything checked; paths are relative to `directory`. Of a back end that is not used nothing is checked, as upstream.
    pub fn settle(self, directory: &Path) -> Result<Options, OptionsError> {
        let log = match self.audit_log_path {
            None => None,
            Some(path) => {
                version("--audit-log-version", self.audit_log_version.as_deref())?;
                let given = Given {
                    names: &LOG,
                    mode: self.audit_log_mode.unwrap_or(AuditMode::Blocking),
                    buffer_size: self.audit_log_batch_buffer_size.unwrap_or(10_000),
                    max_size: self.audit_log_batch_max_size.unwrap_or(1),
                    max_wait: self.audit_log_batch_max_wait.unwrap_or_else(|| "0s".into()),
                    throttle: self.audit_log_batch_throttle_enable.unwrap_or(false),
                    qps: self.audit_log_batch_throttle_qps.unwrap_or(0.0),
                    burst: self.audit_log_batch_throttle_burst.unwrap_or(0),
                    truncate: self.audit_log_truncate_enabled.unwrap_or(false),
                    truncate_batch: self.audit_log_truncate_max_batch_size,
                    truncate_event: self.audit_log_truncate_max_event_size,
                };
                Some(LogOptions {
                    path: if path.as_os_str() == "-" {
                        path
                    } else {
                        directory.join(path)
                    },
                    format: match self.audit_log_format {
                        Some(LogFormat::Legacy) => Format::Legacy,
                        _ => Format::Json,
                    },
                    rotation: Rotation {
                        max_size: self.audit_log_maxsize.unwrap_or(100),
                        max_age: self.audit_log_maxage.unwrap_or(366),
                        max_backups: self.audit_log_maxbackup.unwrap_or(100),
                        compress: self.audit_log_compress.unwrap_or(false),
                    },
                    truncation: given.truncation()?,
                    batch: given.batch()?,
                })
            }
        };
        let webhook = match self.audit_webhook_config_file {
            None => None,
            Some(file) => {
                version("--audit-webhook-version", self.audit_webhook_version.as_deref())?;
                let text = self.audit_webhook_initial_backoff.as_deref().unwrap_or("10s");
                let given = Given {
                    names: &WEBHOOK,
                    mode: self.audit_webhook_mode.unwrap_or(AuditMode::Batch),
                    buffer_size: self.audit_webhook_batch_buffer_size.unwrap_or(10_000),
                    max_size: self.audit_webhook_batch_max_size.unwrap_or(400),
                    max_wait: self.audit_webhook_batch_max_wait.unwrap_or_else(|| "30s".into()),
                    throttle: self.audit_webhook_batch_throttle_enable.unwrap_or(true),
                    qps: self.audit_webhook_batch_throttle_qps.unwrap_or(10.0),
                    burst: self.audit_webhook_batch_throttle_burst.unwrap_or(15),
                    truncate: self.audit_webhook_truncate_enabled.unwrap_or(false),
                    truncate_batch: self.audit_webhook_truncate_max_batch_size,
                    truncate_event: self.audit_webhook_truncate_max_event_size,
                };
                Some(WebhookOptions {
                    config_file: directory.join(file),
                    initial_backoff: duration("--audit-webhook-initial-backoff", text)?,
                    truncation: given.truncation()?,
                    batch: given.batch()?,
                })
            }
        };
        Ok(audit::Options {
            policy_file: self.audit_policy_file.map(|path| directory.join(path)),
            log,
            webhook,
        })
    }
}

/// The options that both back ends have.
struct Given {
    names: &'static Names,
    mode: AuditMode,
    buffer_size: usize,
    max_size: usize,
    max_wait: String,
    throttle: bool,
    qps: f64,
    burst: usize,
    truncate: bool,
    truncate_batch: Option<usize>,
    truncate_event: Option<usize>,
}

struct Names {
    buffer_size: &'static str,
    max_size: &'static str,
    max_wait: &'static str,
    qps: &'static str,
    burst: &'static str,
    truncate_batch: &'static str,
    truncate_event: &'static str,
}

const LOG: Names = Names {
    buffer_size: "--audit-log-batch-buffer-size",
    max_size: "--audit-log-batch-max-size",
    max_wait: "--audit-log-batch-max-wait",
    qps: "--audit-log-batch-throttle-qps",
    burst: "--audit-log-batch-throttle-burst",
    truncate_batch: "--audit-log-truncate-max-batch-size",
    truncate_event: "--audit-log-truncate-max-event-size",
};
const WEBHOOK: Names = Names {
    buffer_size: "--audit-webhook-batch-buffer-size",
    max_size: "--audit-webhook-batch-max-size",
    max_wait: "--audit-webhook-batch-max-wait",
    qps: "--audit-webhook-batch-throttle-qps",
    burst: "--audit-webhook-batch-throttle-burst",
    truncate_batch: "--audit-webhook-truncate-max-batch-size",
    truncate_event: "--audit-webhook-truncate-max-event-size",
};

impl Given {
    fn batch(self) -> Result<BatchOptions, OptionsError> {
        let names = self.names;
        if self.mode == AuditMode::Batch {
            for (option, value) in [(names.buffer_size, self.buffer_size), (names.max_size, self.max_size)] {
                if value == 0 {
                    return Err(invalid(option, value, "give a number above 0"));
                }
            }
            if self.throttle && !(self.qps.is_finite() && self.qps > 0.0) {
                return Err(invalid(names.qps, self.qps, "give a number above 0"));
            }
            if self.throttle && self.burst == 0 {
                return Err(invalid(names.burst, self.burst, "give a number above 0"));
            }
        }
        Ok(BatchOptions {
            mode: self.mode.into(),
            buffer_size: self.buffer_size,
            max_size: self.max_size,
            max_wait: duration(names.max_wait, &self.max_wait)?,
            throttle: self.throttle.then_some((self.qps, self.burst)),
        })
    }

    fn truncation(&self) -> Result<Option<Truncation>, OptionsError> {
        let max_event = self.truncate_event.unwrap_or(100 * 1024);
        let max_batch = self.truncate_batch.unwrap_or(10 * 1024 * 1024);
        if max_event == 0 {
            return Err(invalid(self.names.truncate_event, max_event, "give a number above 0"));
        }
        if max_batch < max_event {
            return Err(invalid(
                self.names.truncate_batch,
                max_batch,
                format!("an event may have {max_event} bytes; give at least as many"),
            ));
        }
        Ok(self.truncate.then_some(Truncation { max_event, max_batch }))
    }
}

fn duration(option: &'static str, text: &str) -> Result<Duration, OptionsError> {
    go_duration(text).ok_or_else(|| invalid(option, text, "give a duration such as 10s or 1m30s"))
}

fn version(option: &'static str, given: Option<&str>) -> Result<(), OptionsError> {
    match given {
        None | Some("audit.k8s.io/v1") => Ok(()),
        Some(other) => Err(invalid(option, other, "there is only audit.k8s.io/v1")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(yaml: &str) -> AuditOptions {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn defaults_are_upstreams() {
        let options = of("auditLogPath: a.log\nauditWebhookConfigFile: hook.yaml")
            .settle(Path::new("/d"))
            .unwrap();
        let log = options.log.unwrap();
        assert_eq!(log.path, Path::new("/d/a.log"));
        assert_eq!(
            (log.format, log.batch.mode, log.truncation),
            (Format::Json, Mode::Blocking, None)
        );
        let rotation = Rotation {
            max_size: 100,
            max_age: 366,
            max_backups: 100,
            compress: false,
        };
        assert_eq!(log.rotation, rotation);
        let webhook = options.webhook.unwrap();
        assert_eq!(webhook.initial_backoff, Duration::from_secs(10));
        assert_eq!(
            webhook.batch,
            BatchOptions {
                mode: Mode::Batch,
                buffer_size: 10_000,
                max_size: 400,
                max_wait: Duration::from_secs(30),
                throttle: Some((10.0, 15)),
            }
        );
        assert_eq!(of("{}").settle(Path::new("/")).unwrap(), Options::default());
        assert_eq!(
            of("auditLogPath: '-'")
                .settle(Path::new("/d"))
                .unwrap()
                .log
                .unwrap()
                .path,
            Path::new("-")
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (yaml, option) in [
            (
                "auditLogPath: a\nauditLogMode: batch\nauditLogBatchBufferSize: 0",
                "--audit-log-batch-buffer-size",
            ),
            (
                "auditLogPath: a\nauditLogVersion: audit.k8s.io/v1beta1",
                "--audit-log-version",
            ),
            (
                "auditWebhookConfigFile: a\nauditWebhookBatchMaxWait: soon",
                "--audit-webhook-batch-max-wait",
            ),
            (
                "auditWebhookConfigFile: a\nauditWebhookBatchThrottleQps: 0",
                "--audit-webhook-batch-throttle-qps",
            ),
            (
                "auditLogPath: a\nauditLogTruncateMaxBatchSize: 10",
                "--audit-log-truncate-max-batch-size",
            ),
        ] {
            let error = of(yaml).settle(Path::new("/")).unwrap_err().to_string();
            assert!(error.starts_with(option), "{yaml}: {error}");
        }
        // Of what is not used nothing is asked.
        assert!(of("auditLogBatchBufferSize: 0").settle(Path::new("/")).is_ok());
    }
}
