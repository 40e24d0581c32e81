//! Real packets between namespaces. Root only.

use super::*;
use crate::testing::{MACHINE, OUTSIDE, World, ask, is_root, serve};

#[tokio::test]
async fn pods_reach_each_other_the_machine_and_the_world() {
    if !is_root() {
        return;
    }
    for bridge_netfilter in [false, true] {
        pods_reach_each_other_the_machine_and_the_world_with(bridge_netfilter).await;
    }
}

async fn pods_reach_each_other_the_machine_and_the_world_with(bridge_netfilter: bool) {
    let world = World::with_bridge_netfilter(bridge_netfilter).await;
    let (a, b) = (world.pod("a", vec![]).await, world.pod("b", vec![]).await);
    assert_eq!((a.ip().octets()[3], b.ip().octets()[3]), (2, 3));
    b.serve(80);
    serve(&world.machine, "machine", 81);
    serve(&world.outside, "outside", 82);
    let answer = |name: &str, source: Ipv4Addr| (name.to_owned(), source.to_string());
    // Pods keep their address among each other and towards the machine; outside they have the machine's.
    assert_eq!(ask(&a.netns, (b.ip(), 80)).unwrap(), answer("b", a.ip()));
    assert_eq!(
        ask(&a.netns, (world.network.gateway(), 81)).unwrap(),
        answer("machine", a.ip())
    );
    assert_eq!(ask(&a.netns, (MACHINE, 81)).unwrap(), answer("machine", a.ip()));
    assert_eq!(ask(&a.netns, (OUTSIDE, 82)).unwrap(), answer("outside", MACHINE));
    assert_eq!(
        ask(&world.machine, (b.ip(), 80)).unwrap(),
        answer("b", world.network.gateway())
    );
    assert_eq!(a.status.mac, "0a:58:0a:f4:00:02");
}

#[tokio::test]
async fn setup_and_teardown_can_be_repeated_and_survive_a_restart() {
    if !is_root() {
        return;
    }
    let world = World::new().await;
    let a = world.pod("a", vec![]).await;
    a.serve(80);
    let again = world.pod("a", vec![]).await;
    assert_eq!(again.status, a.status);
    // A new process finds the bridge and the record.
    let restarted = PodNetwork::new(world.config.clone()).await.unwrap();
    assert_eq!(restarted.status("a"), Some(a.status.clone()));
    assert!(ask(&world.machine, (a.ip(), 80)).is_ok());
    // A link lost is made again.
    netns::within(&world.machine, || {
        Links::open().unwrap().remove(&a.status.link).unwrap()
    })
    .unwrap();
    assert!(ask(&world.machine, (a.ip(), 80)).is_err());
    let setup = PodSetup {
        uid: "a".into(),
        netns: a.netns.clone(),
        host_ports: vec![],
        pod: None,
    };
    assert_eq!(restarted.setup(setup).await.unwrap(), a.status);
    assert!(ask(&world.machine, (a.ip(), 80)).is_ok());

    let b = world.pod("b", vec![]).await;
    assert_eq!(world.network.gc(["a".to_owned()].into()).await.unwrap(), ["b"]);
    assert_eq!(world.network.status("b"), None);
    world.network.teardown("b").await.unwrap();
    let has_link = netns::within(&world.machine, || Links::open().unwrap().find(&b.status.link).unwrap()).unwrap();
    assert_eq!(has_link, None);
}

#[tokio::test]
async fn host_ports_lead_to_their_pod() {
    if !is_root() {
        return;
    }
    for bridge_netfilter in [false, true] {
        host_ports_lead_to_their_pod_with(bridge_netfilter).await;
    }
}

async fn host_ports_lead_to_their_pod_with(bridge_netfilter: bool) {
    let world = World::with_bridge_netfilter(bridge_netfilter).await;
    let port = |host_ip, host_port| HostPort {
        protocol: Protocol::Tcp,
        host_ip,
        host_port,
        container_port: 80,
    };
    let a = world
        .pod("a", vec![port(None, 8080), port(Some(Ipv4Addr::LOCALHOST), 8081)])
        .await;
    let b = world.pod("b", vec![]).await;
    a.serve(80);
    let answer = |source: Ipv4Addr| ("a".to_owned(), source.to_string());
    assert_eq!(ask(&world.outside, (MACHINE, 8080)).unwrap(), answer(OUTSIDE));
    assert_eq!(ask(&b.netns, (MACHINE, 8080)).unwrap(), answer(b.ip()));
    assert_eq!(ask(&world.machine, (Ipv4Addr::LOCALHOST, 8080)).unwrap().0, "a");
    assert_eq!(ask(&world.machine, (Ipv4Addr::LOCALHOST, 8081)).unwrap().0, "a");
    assert!(ask(&world.outside, (MACHINE, 8081)).is_err());
    // The Pod reaches itself the long way round.
    assert_eq!(ask(&a.netns, (MACHINE, 8080)).unwrap(), answer(world.network.gateway()));
    let taken = PodSetup {
        uid: "c".into(),
        netns: b.netns.clone(),
        host_ports: vec![port(None, 8081)],
        pod: None,
    };
    assert!(matches!(
        world.network.setup(taken).await,
        Err(PodNetworkError::HostPortTaken { port: 8081, .. })
    ));
    world.network.teardown("a").await.unwrap();
    assert!(ask(&world.outside, (MACHINE, 8080)).is_err());
}

#[tokio::test]
async fn cleanup_leaves_the_machine_as_it_was() {
    if !is_root() {
        return;
    }
    let world = World::new().await;
    let a = world.pod("a", vec![]).await;
    let forwarding = || {
        netns::within(&world.machine, || {
            std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap()
        })
        .unwrap()
    };
    assert_eq!(forwarding().trim(), "1");
    crate::cleanup(&world.config).unwrap();
    crate::cleanup(&world.config).unwrap();
    assert_eq!(forwarding().trim(), "0");
    assert!(!a.netns.exists());
    let links = netns::within(&world.machine, || {
        let mut links = Links::open().unwrap();
        [&world.config.bridge, &a.status.link, "out0"].map(|name| links.find(name).unwrap().is_some())
    });
    assert_eq!(links.unwrap(), [false, false, true]);
}

#[tokio::test]
async fn what_cannot_be_is_said_clearly() {
    if !is_root() {
        return;
    }
    let world = World::new().await;
    let missing = PodSetup {
        uid: "a".into(),
        netns: "/nowhere/x".into(),
        host_ports: vec![],
        pod: None,
    };
    let error = world.network.setup(missing).await.unwrap_err().to_string();
    assert!(
        error.starts_with("cannot connect the Pod's network namespace /nowhere/x:"),
        "{error}"
    );
    assert_eq!(world.network.status("a"), None);
    let small = PodNetworkConfig {
        pod_cidr: "10.1.0.0/31".parse().unwrap(),
        ..world.config.clone()
    };
    assert!(matches!(
        PodNetwork::new(small).await,
        Err(PodNetworkError::SmallRange(_))
    ));
    netns::within(&world.machine, || {
        Links::open()
            .unwrap()
            .add_pair("sampan9", &world.outside, [2, 0, 0, 0, 0, 1], None)
    })
    .unwrap()
    .unwrap_err();
    let clash = PodNetworkConfig {
        bridge: "out0".into(),
        ..world.config.clone()
    };
    let error = PodNetwork::new(clash).await.unwrap_err().to_string();
    assert!(error.contains("is a veth, not a bridge"), "{error}");
}
