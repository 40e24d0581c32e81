//! Leader election over a Lease: of several processes with the same role, one works.
//!
//! A candidate takes the Lease when nobody holds it or its holder has let it run out, judged by this process' own clock
//! from the moment it last saw the Lease change: clocks of different machines are never compared. A leader that cannot
//! renew in time stops working before another may begin.

use std::future::Future;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use kube::Api;
use kube::api::PostParams;
use sampan_tasks::Drain;
use tokio::time::{Instant, sleep, timeout};

use crate::{Clock, or_absent};

/// Which Lease, and how patient.
#[derive(Clone, Debug)]
pub struct Election {
    pub namespace: String,
    pub name: String,
    /// Unique among the candidates.
    pub identity: String,
    /// How long others wait after the last renewal they saw.
    pub lease: Duration,
    /// How long a leader works without having renewed.
    pub renew: Duration,
    /// Time between tries.
    pub retry: Duration,
}

impl Election {
    pub fn new(namespace: &str, name: &str, identity: &str) -> Self {
        Election {
            namespace: namespace.into(),
            name: name.into(),
            identity: identity.into(),
            lease: Duration::from_secs(15),
            renew: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// How [`run`] ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// `drain` was given; the Lease was released if we held it.
    Drained,
    /// We were leader and are no longer: `work` was dropped. The process should start over.
    Lost,
    /// `work` ended by itself.
    Finished,
}

/// Waits to become leader, then runs `work` while staying leader.
pub async fn run<Fut: Future<Output = ()>>(
    client: kube::Client,
    election: Election,
    clock: &dyn Clock,
    work: impl FnOnce() -> Fut,
    drain: Drain,
) -> Ended {
    let mut candidate = Candidate {
        api: Api::namespaced(client, &election.namespace),
        election,
        clock,
        seen: None,
    };
    loop {
        match candidate.try_acquire().await {
            Ok(true) => break,
            Ok(false) => {}
            Err(error) => tracing::debug!(%error, "cannot read or take the lease, will retry"),
        }
        let pause = candidate.election.retry.mul_f64(rand::random_range(1.0..1.2));
        if drain.until(sleep(pause)).await.is_none() {
            return Ended::Drained;
        }
    }
    tracing::info!(
        lease = candidate.election.name,
        identity = candidate.election.identity,
        "became leader"
    );
    let ended = tokio::select! {
        () = drain.started() => Ended::Drained,
        () = candidate.stay() => Ended::Lost,
        () = work() => Ended::Finished,
    };
    if ended == Ended::Lost {
        tracing::error!(lease = candidate.election.name, "lost the lease");
    } else if let Err(error) = candidate.release().await {
        tracing::debug!(%error, "could not release the lease; it will run out");
    }
    ended
}

struct Candidate<'a> {
    api: Api<Lease>,
    election: Election,
    clock: &'a dyn Clock,
    /// The version last seen and when.
    seen: Option<(Option<String>, Instant)>,
}

impl Candidate<'_> {
    /// Takes or renews the lease if that is allowed now.
    async fn try_acquire(&mut self) -> kube::Result<bool> {
        let me = &self.election.identity;
        let Some(mut lease) = or_absent(self.api.get(&self.election.name).await)? else {
            let lease = Lease {
                metadata: kube::api::ObjectMeta {
                    name: Some(self.election.name.clone()),
                    namespace: Some(self.election.namespace.clone()),
                    ..Default::default()
                },
                spec: Some(LeaseSpec {
                    acquire_time: Some(self.clock.micro_time()),
                    lease_transitions: Some(0),
                    ..self.renewed()
                }),
            };
            let made = self.api.create(&PostParams::default(), &lease).await?;
            self.seen = Some((made.metadata.resource_version, Instant::now()));
            return Ok(true);
        };
        let version = lease.metadata.resource_version.clone();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != version) {
            self.seen = Some((version, Instant::now()));
        }
        let mut spec = lease.spec.take().unwrap_or_default();
        let holder = spec.holder_identity.as_deref().unwrap_or_default();
        if holder == me {
            lease.spec = Some(LeaseSpec {
                acquire_time: spec.acquire_time,
                lease_transitions: spec.lease_transitions,
                ..self.renewed()
            });
        } else {
            let term = spec
                .lease_duration_seconds
                .and_then(|seconds| u64::try_from(seconds).ok())
                .map_or(self.election.lease, Duration::from_secs);
            let run_out = self.seen.as_ref().is_some_and(|(_, at)| at.elapsed() > term);
            if !holder.is_empty() && !run_out {
                return Ok(false);
            }
            spec.lease_transitions = Some(spec.lease_transitions.unwrap_or(0).saturating_add(1));
            lease.spec = Some(LeaseSpec {
                acquire_time: Some(self.clock.micro_time()),
                lease_transitions: spec.lease_transitions,
                ..self.renewed()
            });
        }
        let written = self
            .api
            .replace(&self.election.name, &PostParams::default(), &lease)
            .await?;
        self.seen = Some((written.metadata.resource_version, Instant::now()));
        Ok(true)
    }

    fn renewed(&self) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.election.identity.clone()),
            lease_duration_seconds: i32::try_from(self.election.lease.as_secs()).ok(),
            renew_time: Some(self.clock.micro_time()),
            ..Default::default()
        }
    }

    /// Renews until that fails for too long or somebody else holds the lease.
    async fn stay(&mut self) {
        let mut renewed = Instant::now();
        loop {
            sleep(self.election.retry).await;
            let left = self.election.renew.saturating_sub(renewed.elapsed());
            match timeout(left, self.try_acquire()).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) | Err(_) => return,
                Ok(Err(error)) => {
                    tracing::warn!(%error, "cannot renew the lease, will retry");
                    if renewed.elapsed() >= self.election.renew {
                        return;
                    }
                }
            }
        }
    }

    async fn release(&self) -> kube::Result<()> {
        let mut lease = self.api.get(&self.election.name).await?;
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.election.identity) {
            return Ok(());
        }
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(self.clock.micro_time());
        self.api
            .replace(&self.election.name, &PostParams::default(), &lease)
            .await?;
        Ok(())
    }
}
