//! What only the etcd engine does: TLS, failover, restarts, stalls, other writers, a full disk, layout.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use sampan_store::etcd::{Etcd, Options};
use sampan_store::testing::{EtcdProcess, Tls};
use sampan_store::{Condition, Error, Event, Op, Store, Update, WatchStream, Write, Written};
use sampan_tasks::Tasks;

async fn connect(options: &Options) -> Arc<Etcd> {
    Etcd::connect(options, &Tasks::new()).await.unwrap()
}

fn put(key: &str, condition: Condition, value: impl Into<bytes::Bytes>) -> Write {
    Write {
        key: key.into(),
        condition,
        op: Op::Put {
            value: value.into(),
            lease: None,
        },
    }
}

async fn commit(store: &Etcd, key: &str) -> u64 {
    match store.write(put(key, Condition::None, "x")).await.unwrap() {
        Written::Committed { revision } => revision,
        refused => panic!("{refused:?}"),
    }
}

async fn event(watch: &mut WatchStream) -> Event {
    loop {
        let update = tokio::time::timeout(Duration::from_secs(60), watch.recv()).await;
        if let Update::Event { event, .. } = update.expect("no event in time").expect("the watch ended").unwrap() {
            return event;
        }
    }
}

/// An authority and one certificate that serves members and clients alike.
fn certificates(dir: &Path) -> Tls {
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut ca = rcgen::CertificateParams::new(Vec::new()).unwrap();
    ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let ca_cert = ca.self_signed(&ca_key).unwrap();
    let issuer = rcgen::Issuer::new(ca, ca_key);
    let key = rcgen::KeyPair::generate().unwrap();
    let mut leaf = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
    leaf.extended_key_usages = vec![
        rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        rcgen::ExtendedKeyUsagePurpose::ClientAuth,
    ];
    let cert = leaf.signed_by(&key, &issuer).unwrap();
    let write = |name: &str, text: String| {
        let path = dir.join(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    Tls {
        ca: write("ca.crt", ca_cert.pem()),
        cert: write("etcd.crt", cert.pem()),
        key: write("etcd.key", key.serialize_pem()),
    }
}

#[tokio::test]
async fn tls_is_mutual_and_its_failures_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let Some(etcd) = EtcdProcess::start_with(Some(certificates(dir.path())), &[]) else {
        return;
    };
    let options = etcd.options();
    let store = connect(&options).await;
    assert_eq!(commit(&store, "/registry/a").await, 2);
    for (broken, named) in [
        (
            Options {
                ca_file: None,
                cert_file: None,
                key_file: None,
                ..options.clone()
            },
            "--etcd-cafile",
        ),
        (
            Options {
                key_file: None,
                ..options.clone()
            },
            "come together",
        ),
        (
            Options {
                ca_file: Some("/nowhere".into()),
                ..options.clone()
            },
            "/nowhere",
        ),
        (
            Options {
                servers: vec!["nonsense".into()],
                ..options.clone()
            },
            "nonsense",
        ),
        (
            Options {
                servers: Vec::new(),
                ..options.clone()
            },
            "--etcd-servers",
        ),
    ] {
        let Err(error) = Etcd::connect(&broken, &Tasks::new()).await else {
            panic!("accepted {broken:?}")
        };
        assert!(error.to_string().contains(named), "{error}");
    }
}

#[tokio::test]
async fn a_dead_endpoint_is_passed_over() {
    let Some(etcd) = EtcdProcess::start() else { return };
    let mut options = etcd.options();
    // Nobody listens on the discard port.
    options.servers.insert(0, "http://127.0.0.1:9".into());
    options.servers.push("http://127.0.0.1:9".into());
    for _ in 0..4 {
        let store = connect(&options).await;
        let revision = commit(&store, "/registry/a").await;
        assert_eq!(store.newest().await.unwrap(), revision);
        let mut watch = store.watch("/registry/", revision - 1).await.unwrap();
        assert_eq!(event(&mut watch).await.revision, revision);
    }
}

#[tokio::test]
async fn a_restart_is_survived_and_the_watch_goes_on() {
    let Some(mut etcd) = EtcdProcess::start() else { return };
    let store = connect(&etcd.options()).await;
    let mut watch = store.watch("/registry/", store.revision()).await.unwrap();
    let first = commit(&store, "/registry/a").await;
    assert_eq!(event(&mut watch).await.revision, first);
    etcd.kill();
    assert!(store.health().await.is_err(), "a dead etcd is not healthy");
    let (waiting, key) = (store.clone(), "/registry/b");
    // A write that cannot be sent waits for etcd to come back.
    let write = async move { commit(&waiting, key).await };
    let back = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_millis(500));
        etcd.run();
        etcd
    });
    let (second, etcd) = tokio::join!(write, back);
    assert_eq!(event(&mut watch).await.revision, second);
    store.health().await.unwrap();
    drop(etcd);
}

#[tokio::test]
async fn other_writers_and_foreign_keys_are_followed() {
    let Some(etcd) = EtcdProcess::start() else { return };
    let (one, two) = (connect(&etcd.options()).await, connect(&etcd.options()).await);
    let foreign = connect(&Options {
        prefix: "/else/where/".into(),
        ..etcd.options()
    })
    .await;
    let mut watch = one.watch("/registry/", one.revision()).await.unwrap();
    let theirs = commit(&two, "/registry/a").await;
    assert_eq!(one.newest().await.unwrap(), theirs, "a read sees what another wrote");
    assert_eq!(event(&mut watch).await.revision, theirs);
    let elsewhere = commit(&foreign, "/registry/a").await;
    assert!(one.get("/registry/where").await.unwrap().is_none());
    assert_eq!(one.newest().await.unwrap(), elsewhere);
    let update = watch.recv().await.unwrap().unwrap();
    assert!(
        matches!(update, Update::Reached(revision) if revision == elsewhere),
        "{update:?}"
    );
    assert_eq!(foreign.get("/registry/a").await.unwrap().unwrap().value, "x");
}

#[tokio::test]
async fn one_of_several_compacts() {
    let Some(etcd) = EtcdProcess::start() else { return };
    let (one, two) = (connect(&etcd.options()).await, connect(&etcd.options()).await);
    let first = commit(&one, "/registry/a").await;
    one.compact(first).await.unwrap();
    // The other loses this interval, learns so, and may have the next.
    two.compact(first).await.unwrap();
    assert_eq!((one.compacted(), two.compacted()), (first, first));
    let second = commit(&one, "/registry/a").await;
    two.compact(second).await.unwrap();
    assert_eq!((one.compacted(), two.compacted()), (first, second));
}

#[tokio::test]
async fn a_stall_delays_and_loses_nothing() {
    let Some(etcd) = EtcdProcess::start() else { return };
    let store = connect(&etcd.options()).await;
    let mut watch = store.watch("/registry/", store.revision()).await.unwrap();
    etcd.signal("STOP");
    let begun = Instant::now();
    assert!(store.health().await.is_err());
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "a health check does not hang"
    );
    let waiting = store.clone();
    let write = async move { commit(&waiting, "/registry/a").await };
    let wake = async {
        tokio::time::sleep(Duration::from_secs(8)).await;
        etcd.signal("CONT");
    };
    let (revision, ()) = tokio::join!(write, wake);
    assert_eq!(event(&mut watch).await.revision, revision);
}

#[tokio::test]
async fn a_full_etcd_says_so() {
    let Some(etcd) = EtcdProcess::start_with(None, &["--quota-backend-bytes", "1000000"]) else {
        return;
    };
    let store = connect(&etcd.options()).await;
    let mut refused = None;
    for number in 0..200 {
        let write = put(
            &format!("/registry/{number}"),
            Condition::ModRevision(0),
            vec![b'x'; 100_000],
        );
        if let Err(error) = store.write(write).await {
            refused = Some((number, error));
            break;
        }
    }
    let (number, error) = refused.expect("the quota holds");
    assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
    assert_eq!(error.to_string(), "etcdserver: mvcc: database space exceeded");
    assert!(store.get(&format!("/registry/{number}")).await.unwrap().is_none());
    assert!(store.get("/registry/0").await.unwrap().is_some(), "reads go on");
}

#[tokio::test]
async fn a_value_too_large_for_etcd_is_refused_in_its_words() {
    let Some(etcd) = EtcdProcess::start() else { return };
    let store = connect(&etcd.options()).await;
    let error = store
        .write(put("/registry/large", Condition::None, vec![b'x'; 1_700_000]))
        .await
        .unwrap_err();
    assert!(matches!(error, Error::Rejected { .. }), "{error:?}");
    assert_eq!(error.to_string(), "etcdserver: request is too large");
    assert!(store.get("/registry/large").await.unwrap().is_none());
    store
        .write(put("/registry/large", Condition::None, vec![b'x'; 1 << 20]))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_filled_from_elsewhere_counts_on() {
    let Some(etcd) = EtcdProcess::start() else { return };
    let (options, tasks) = (etcd.options(), Tasks::new());
    let store = Etcd::connect_to_fill(&options, false, &tasks).await.unwrap();
    assert!(
        Etcd::connect(&options, &tasks).await.is_err(),
        "half filled is of no use to others"
    );
    commit(&store, "/registry/junk").await;
    // Whoever filled it died: the next attempt begins anew and needs no force.
    drop(store);
    let store = Etcd::connect_to_fill(&options, false, &tasks).await.unwrap();
    assert!(store.get("/registry/junk").await.unwrap().is_none());
    commit(&store, "/registry/a").await;
    store.filled(5_000).await.unwrap();
    let again = connect(&options).await;
    let entry = again.get("/registry/a").await.unwrap().unwrap();
    assert!(entry.mod_revision > 5_000);
    assert!(matches!(
        again.watch("/registry/", 5_000).await,
        Err(Error::Compacted { .. })
    ));
    let mut watch = again.watch("/registry/a", again.revision()).await.unwrap();
    let later = commit(&again, "/registry/a").await;
    assert_eq!(event(&mut watch).await.revision, later);
    let kept = again
        .write(put("/registry/a", Condition::ModRevision(4_000), "y"))
        .await
        .unwrap();
    assert!(
        matches!(kept, Written::Refused { .. }),
        "a revision from before matches nothing"
    );
    let Err(error) = Etcd::connect_to_fill(&options, false, &tasks).await else {
        panic!("overwritten")
    };
    assert!(error.to_string().contains("--force"), "{error}");
    let forced = Etcd::connect_to_fill(&options, true, &tasks).await.unwrap();
    assert!(forced.newest().await.unwrap() > later, "revisions never go back");
    assert!(forced.get("/registry/a").await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_death_of_a_member_loses_nothing_acknowledged() {
    let Some(mut members) = EtcdProcess::start_cluster(3) else {
        return;
    };
    let options = Options {
        servers: members.iter().map(EtcdProcess::url).collect(),
        ..members[0].options()
    };
    let store = connect(&options).await;
    let mut watch = store.watch("/registry/", store.newest().await.unwrap()).await.unwrap();
    let stop = AtomicBool::new(false);
    let writers = futures::future::join_all((0..4).map(|writer| {
        let (store, stop) = (store.clone(), &stop);
        async move {
            let (mut acknowledged, mut uncertain) = (Vec::new(), 0);
            for step in 0.. {
                if stop.load(Ordering::Acquire) {
                    break;
                }
                let key = format!("/registry/{writer}/{step}");
                match store.write(put(&key, Condition::ModRevision(0), "x")).await {
                    Ok(Written::Committed { revision }) => acknowledged.push((key, revision)),
                    Ok(refused) => panic!("{refused:?}"),
                    Err(Error::Uncertain { .. } | Error::Unavailable { .. }) => uncertain += 1,
                    Err(error) => panic!("{error:?}"),
                }
            }
            (acknowledged, uncertain)
        }
    }));
    let deaths = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        // One after the other, so one of them led.
        for (number, member) in members.iter_mut().enumerate() {
            member.kill();
            let begun = Instant::now();
            let key = format!("/registry/after/{number}");
            while store.write(put(&key, Condition::None, "x")).await.is_err() {
                assert!(begun.elapsed() < Duration::from_secs(60), "two of three take no writes");
            }
            println!("member {number} died; a write went through {:?} later", begun.elapsed());
            tokio::time::sleep(Duration::from_secs(1)).await;
            member.run();
            tokio::time::sleep(Duration::from_secs(2)).await;
        }
        stop.store(true, Ordering::Release);
    };
    let (written, ()) = tokio::join!(writers, deaths);
    let mut acknowledged = std::collections::BTreeMap::new();
    for (some, uncertain) in written {
        assert!(uncertain < 20, "{uncertain} writes of one client without an answer");
        acknowledged.extend(some);
    }
    let newest = store.newest().await.unwrap();
    let mut told = std::collections::BTreeMap::new();
    loop {
        let event = event(&mut watch).await;
        let repeated = told.insert(event.key.to_string(), event.revision);
        assert!(repeated < Some(event.revision), "{} was told twice", event.key);
        if event.revision >= newest {
            break;
        }
    }
    for (key, revision) in &acknowledged {
        assert_eq!(told.get(key), Some(revision), "{key} was acknowledged");
        let entry = store.get(key).await.unwrap().expect("acknowledged");
        assert_eq!(entry.mod_revision, *revision);
    }
    assert!(acknowledged.len() > 50, "{}", acknowledged.len());
}

/// Somebody put an older snapshot in etcd's place: what this process knows never happened.
#[tokio::test]
async fn a_history_that_went_back_is_noticed() {
    let Some(mut etcd) = EtcdProcess::start() else { return };
    let store = connect(&etcd.options()).await;
    commit(&store, "/registry/a").await;
    etcd.kill();
    let kept = tempfile::tempdir().unwrap();
    let copy = |from: &Path, to: &Path| {
        let done = std::process::Command::new("cp").arg("-a").arg(from).arg(to).status();
        assert!(done.unwrap().success());
    };
    copy(etcd.dir(), &kept.path().join("data"));
    etcd.run();
    // A read is repeated until the connection is there again; a write would not be.
    store.get("/registry/a").await.unwrap();
    for _ in 0..5 {
        commit(&store, "/registry/b").await;
    }
    let mut watch = store.watch("/registry/", store.newest().await.unwrap()).await.unwrap();
    etcd.kill();
    std::fs::remove_dir_all(etcd.dir()).unwrap();
    copy(&kept.path().join("data"), etcd.dir());
    etcd.run();
    store.get("/registry/a").await.unwrap();
    let error = store.write(put("/registry/c", Condition::None, "x")).await.unwrap_err();
    assert!(error.to_string().contains("went back"), "{error}");
    let error = store.newest().await.unwrap_err();
    assert!(error.to_string().contains("restored from an older state"), "{error}");
    let ended = loop {
        match watch.recv().await.expect("the watch says why it ends") {
            Ok(_) => {}
            Err(error) => break error.to_string(),
        }
    };
    assert!(ended.contains("start this server anew"), "{ended}");
    // A new start knows nothing of it.
    let again = connect(&etcd.options()).await;
    assert!(again.get("/registry/b").await.unwrap().is_none());
}
