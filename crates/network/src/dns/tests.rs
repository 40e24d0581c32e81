//! The zone as a table of questions, and the server over real sockets on loopback.

use std::collections::BTreeMap;

use hickory_proto::rr::RData;
use sampan_client::testing::{FakeApi, eventually};
use sampan_tasks::{OnExit, Tasks};
use serde_json::json;

use super::*;
use crate::testing::{service, slice};

#[derive(Default)]
struct Known {
    services: BTreeMap<(String, String), Arc<Service>>,
    slices: Vec<Arc<EndpointSlice>>,
}

impl Source for Known {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        self.services.get(&(namespace.to_owned(), name.to_owned())).cloned()
    }
    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
        let wanted = sampan_client::Key::new(namespace, name);
        self.slices
            .iter()
            .filter(|slice| crate::proxy::service_of(slice).as_ref() == Some(&wanted))
            .cloned()
            .collect()
    }
    fn has_services(&self, namespace: &str) -> bool {
        self.services.keys().any(|(have, _)| have == namespace)
    }
    fn services_with_ip(&self, ip: Ipv4Addr) -> Vec<Arc<Service>> {
        self.services
            .values()
            .filter(|service| crate::proxy::plan::cluster_ip(service) == Some(ip))
            .cloned()
            .collect()
    }
    fn slices_with_ip(&self, ip: Ipv4Addr) -> Vec<Arc<EndpointSlice>> {
        let has = |slice: &&Arc<EndpointSlice>| {
            slice
                .endpoints
                .iter()
                .flatten()
                .any(|endpoint| endpoint.addresses[0] == ip.to_string())
        };
        self.slices.iter().filter(has).cloned().collect()
    }
}

fn services() -> Vec<Service> {
    vec![
        service(
            "web",
            json!({"clusterIP": "10.96.0.9", "ports": [{"name": "http", "port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}]}),
        ),
        service(
            "db",
            json!({"clusterIP": "None", "ports": [{"name": "sql", "port": 5432}]}),
        ),
        service("empty", json!({"clusterIP": "None"})),
        service("out", json!({"type": "ExternalName", "externalName": "example.org"})),
        service(
            "inner",
            json!({"type": "ExternalName", "externalName": "web.default.svc.cluster.local"}),
        ),
    ]
}

fn slices() -> Vec<EndpointSlice> {
    let endpoints = [
        ("10.244.0.2".parse().unwrap(), json!({"hostname": "db-0"})),
        ("10.244.0.3".parse().unwrap(), json!({})),
        (
            "10.244.0.4".parse().unwrap(),
            json!({"hostname": "db-2", "conditions": {"ready": false}}),
        ),
    ];
    let web = [("10.244.0.9".parse().unwrap(), json!({}))];
    vec![
        slice("db", json!({"name": "sql", "port": 5432}), &endpoints),
        slice("web", json!({"name": "http", "port": 8080}), &web),
    ]
}

fn known() -> Known {
    let services = services().into_iter().map(|service| {
        let name = service.metadata.name.clone().unwrap();
        (("default".to_owned(), name), Arc::new(service))
    });
    Known {
        services: services.collect(),
        slices: slices().into_iter().map(Arc::new).collect(),
    }
}

/// An answer as text: the outcome when there are no records, or the records' data.
fn shown(answer: &Answer) -> String {
    if answer.answers.is_empty() {
        return format!("{:?}", answer.outcome);
    }
    let data = |data: &RData| match data {
        RData::SRV(srv) => format!("{} {} {} {}", srv.priority, srv.weight, srv.port, srv.target),
        RData::TXT(txt) => txt.to_string(),
        other => other.to_string(),
    };
    answer
        .answers
        .iter()
        .map(|record| data(&record.data))
        .collect::<Vec<_>>()
        .join(", ")
}

#[test]
fn the_zone_answers_by_the_specification() {
    let (zone, source) = (Zone::new("cluster.local").unwrap(), known());
    use RecordType::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
    for (name, kind, answer) in [
        ("web.default.svc.cluster.local.", A, "10.96.0.9"),
        ("WEB.Default.svc.CLUSTER.local.", A, "10.96.0.9"),
        ("web.default.svc.cluster.local.", AAAA, "NoData"),
        ("web.default.svc.cluster.local.", TXT, "NoData"),
        ("nope.default.svc.cluster.local.", A, "NoSuchName"),
        ("web.other.svc.cluster.local.", A, "NoSuchName"),
        ("db.default.svc.cluster.local.", A, "10.244.0.2, 10.244.0.3"),
        ("empty.default.svc.cluster.local.", A, "NoData"),
        ("db-0.db.default.svc.cluster.local.", A, "10.244.0.2"),
        ("db-0.db.default.svc.cluster.local.", AAAA, "NoData"),
        ("10-244-0-3.db.default.svc.cluster.local.", A, "10.244.0.3"),
        ("db-2.db.default.svc.cluster.local.", A, "NoSuchName"),
        ("x.web.default.svc.cluster.local.", A, "NoSuchName"),
        (
            "_http._tcp.web.default.svc.cluster.local.",
            SRV,
            "0 100 80 web.default.svc.cluster.local.",
        ),
        ("_http._udp.web.default.svc.cluster.local.", SRV, "NoSuchName"),
        (
            "_dns._udp.web.default.svc.cluster.local.",
            SRV,
            "0 100 53 web.default.svc.cluster.local.",
        ),
        ("_dns._udp.web.default.svc.cluster.local.", A, "NoData"),
        ("_tcp.web.default.svc.cluster.local.", A, "NoData"),
        ("_sctp.web.default.svc.cluster.local.", A, "NoSuchName"),
        (
            "_sql._tcp.db.default.svc.cluster.local.",
            SRV,
            "0 50 5432 db-0.db.default.svc.cluster.local., 0 50 5432 10-244-0-3.db.default.svc.cluster.local.",
        ),
        ("out.default.svc.cluster.local.", CNAME, "example.org."),
        ("out.default.svc.cluster.local.", A, "example.org."),
        ("10-1-2-3.default.pod.cluster.local.", A, "10.1.2.3"),
        ("10-1-2-3.default.pod.cluster.local.", AAAA, "NoData"),
        ("10-1-2-333.default.pod.cluster.local.", A, "NoSuchName"),
        ("dns-version.cluster.local.", TXT, "1.1.0"),
        ("cluster.local.", NS, "ns.dns.cluster.local."),
        (
            "cluster.local.",
            SOA,
            "ns.dns.cluster.local. hostmaster.cluster.local. 1 7200 1800 86400 5",
        ),
        ("cluster.local.", A, "NoData"),
        ("svc.cluster.local.", A, "NoData"),
        ("default.svc.cluster.local.", A, "NoData"),
        ("empty-namespace.svc.cluster.local.", A, "NoSuchName"),
        ("default.pod.cluster.local.", A, "NoData"),
        ("google.com.default.svc.cluster.local.", A, "NoSuchName"),
        ("x.cluster.local.", A, "NoSuchName"),
        ("9.0.96.10.in-addr.arpa.", PTR, "web.default.svc.cluster.local."),
        ("2.0.244.10.in-addr.arpa.", PTR, "db-0.db.default.svc.cluster.local."),
        (
            "3.0.244.10.in-addr.arpa.",
            PTR,
            "10-244-0-3.db.default.svc.cluster.local.",
        ),
        ("9.9.9.9.in-addr.arpa.", PTR, "NotOurs"),
        ("9.0.96.10.in-addr.arpa.", A, "NoData"),
        ("example.org.", A, "NotOurs"),
        ("notcluster.local.", A, "NotOurs"),
        (".", NS, "NotOurs"),
    ] {
        let answer_given = zone.answer(&source, &Name::from_ascii(name).unwrap(), kind);
        assert_eq!(shown(&answer_given), answer, "{name} {kind}");
        let negative =
            matches!(answer_given.outcome, Outcome::NoData | Outcome::NoSuchName) && !name.ends_with("arpa.");
        assert_eq!(answer_given.authority.is_some(), negative, "{name} {kind}");
    }
    let srv = zone.answer(
        &source,
        &Name::from_ascii("_sql._tcp.db.default.svc.cluster.local.").unwrap(),
        SRV,
    );
    assert_eq!(srv.additionals.len(), 2);
}

/// A server on loopback with a resolver of its own that knows `example.org`.
struct Running {
    tasks: Tasks,
    at: SocketAddr,
}

async fn resolver() -> SocketAddr {
    let (socket, streams) = bind("127.0.0.1:0".parse().unwrap()).unwrap();
    socket.set_nonblocking(false).unwrap();
    streams.set_nonblocking(false).unwrap();
    let at = socket.local_addr().unwrap();
    let answer = |bytes: &[u8]| {
        let question = Message::from_vec(bytes).unwrap();
        let mut message = Message::response(question.metadata.id, OpCode::Query);
        message.queries = question.queries.clone();
        let name = question.queries[0].name().clone();
        message.add_answer(hickory_proto::rr::Record::from_rdata(
            name,
            60,
            RData::A("192.0.2.80".parse::<Ipv4Addr>().unwrap().into()),
        ));
        message.to_vec().unwrap()
    };
    std::thread::spawn(move || {
        let mut buffer = [0; 1024];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket.send_to(&answer(&buffer[..length]), from).unwrap();
        }
    });
    std::thread::spawn(move || {
        use std::io::{Read, Write};
        while let Ok((mut stream, _)) = streams.accept() {
            let mut length = [0; 2];
            stream.read_exact(&mut length).unwrap();
            let mut question = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut question).unwrap();
            let answer = answer(&question);
            stream
                .write_all(&[&(answer.len() as u16).to_be_bytes()[..], &answer].concat())
                .unwrap();
        }
    });
    at
}

async fn running(services: Vec<Service>, slices: Vec<EndpointSlice>, resolvers: Vec<SocketAddr>) -> Running {
    let (api, tasks) = (FakeApi::new(), Tasks::new());
    services.iter().for_each(|service| {
        api.create(service);
    });
    slices.iter().for_each(|slice| {
        api.create(slice);
    });
    let informers = Informers::new(api.client("dns"), &tasks);
    let config = DnsConfig {
        resolvers: Some(resolvers),
        ..DnsConfig::new("cluster.local", vec!["127.0.0.1:0".parse().unwrap()])
    };
    let dns = Dns::bind(&config, &informers).unwrap();
    let at = dns.sockets[0].0.local_addr().unwrap();
    let drain = tasks.drain();
    tasks.spawn("dns", OnExit::Critical, dns.run(drain));
    Running { tasks, at }
}

impl Running {
    async fn datagram(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.send_to(bytes, self.at).await.unwrap();
        let mut buffer = vec![0; 65_535];
        let length = timeout(Duration::from_secs(2), socket.recv(&mut buffer))
            .await
            .ok()?
            .unwrap();
        Some(buffer[..length].to_vec())
    }
    async fn ask(&self, question: &Message) -> Message {
        let bytes = question.to_vec().unwrap();
        let answer = eventually("an answer", || self.datagram(&bytes)).await;
        Message::from_vec(&answer).unwrap()
    }
    async fn ask_stream(&self, question: &Message) -> Message {
        let mut stream = TcpStream::connect(self.at).await.unwrap();
        forward::write_framed(&mut stream, &question.to_vec().unwrap())
            .await
            .unwrap();
        Message::from_vec(&forward::read_framed(&mut stream).await.unwrap().unwrap()).unwrap()
    }
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

fn data(message: &Message) -> Vec<String> {
    let mut data: Vec<_> = message.answers.iter().map(|record| record.data.to_string()).collect();
    data.sort();
    data
}

#[tokio::test]
async fn the_server_answers_forwards_and_completes() {
    let dns = running(services(), slices(), vec![resolver().await]).await;
    let web = question("Web.default.svc.cluster.local.", RecordType::A);
    let answer = dns.ask(&web).await;
    assert_eq!(
        (
            answer.metadata.id,
            answer.metadata.authoritative,
            answer.metadata.recursion_available
        ),
        (4711, true, true)
    );
    assert_eq!(data(&answer), ["10.96.0.9"]);
    assert_eq!(
        answer.answers[0].name.to_ascii(),
        "Web.default.svc.cluster.local.",
        "the name as it was asked"
    );
    assert_eq!(data(&dns.ask_stream(&web).await), ["10.96.0.9"]);

    let nobody = dns
        .ask(&question("nobody.default.svc.cluster.local.", RecordType::A))
        .await;
    assert_eq!(nobody.metadata.response_code, ResponseCode::NXDomain);
    assert_eq!(nobody.authorities.len(), 1);
    let nothing = dns
        .ask(&question("web.default.svc.cluster.local.", RecordType::AAAA))
        .await;
    assert_eq!(
        (nothing.metadata.response_code, nothing.answers.len()),
        (ResponseCode::NoError, 0)
    );

    let outside = question("example.org.", RecordType::A);
    assert_eq!(data(&dns.ask(&outside).await), ["192.0.2.80"]);
    assert_eq!(data(&dns.ask_stream(&outside).await), ["192.0.2.80"]);
    // Aliases come with the records of what they stand for.
    assert_eq!(
        data(
            &dns.ask(&question("out.default.svc.cluster.local.", RecordType::A))
                .await
        ),
        ["192.0.2.80", "example.org."]
    );
    assert_eq!(
        data(
            &dns.ask(&question("inner.default.svc.cluster.local.", RecordType::A))
                .await
        ),
        ["10.96.0.9", "web.default.svc.cluster.local."]
    );
    assert_eq!(dns.tasks.shutdown(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn strange_questions_get_a_proper_refusal() {
    let dns = running(services(), slices(), vec![]).await;
    let mut update = question("cluster.local.", RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(dns.ask(&update).await.metadata.response_code, ResponseCode::NotImp);
    let mut two = question("a.cluster.local.", RecordType::A);
    two.add_query(Query::query(Name::from_ascii("b.").unwrap(), RecordType::A));
    assert_eq!(dns.ask(&two).await.metadata.response_code, ResponseCode::FormErr);
    let mut chaos = question("version.bind.", RecordType::TXT);
    chaos.queries[0].set_query_class(DNSClass::CH);
    assert_eq!(dns.ask(&chaos).await.metadata.response_code, ResponseCode::Refused);
    // No resolver at all: a failure, not silence.
    assert_eq!(
        dns.ask(&question("example.org.", RecordType::A))
            .await
            .metadata
            .response_code,
        ResponseCode::ServFail
    );
    // Rubbish with a readable number; an answer posing as a question is met with silence.
    let broken = [&[7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], &[63, 1]].concat();
    let answer = Message::from_vec(&dns.datagram(&broken).await.unwrap()).unwrap();
    assert_eq!(
        (answer.metadata.id, answer.metadata.response_code),
        (0x0707, ResponseCode::FormErr)
    );
    let posing = Message::response(1, OpCode::Query).to_vec().unwrap();
    assert_eq!(
        timeout(Duration::from_millis(300), dns.datagram(&posing))
            .await
            .ok()
            .flatten(),
        None
    );
    assert_eq!(
        timeout(Duration::from_millis(300), dns.datagram(b"x"))
            .await
            .ok()
            .flatten(),
        None
    );
    assert_eq!(dns.tasks.shutdown(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn long_answers_are_cut_for_datagrams_and_whole_on_streams() {
    let many: Vec<_> = (0..200u8)
        .map(|last| (Ipv4Addr::new(10, 244, 7, last), json!({})))
        .collect();
    let services = vec![service(
        "many",
        json!({"clusterIP": "None", "ports": [{"name": "p", "port": 1}]}),
    )];
    let dns = running(
        services,
        vec![slice("many", json!({"name": "p", "port": 1}), &many)],
        vec![],
    )
    .await;
    let mut asked = question("many.default.svc.cluster.local.", RecordType::A);
    let cut = dns.ask(&asked).await;
    assert!(cut.metadata.truncation && cut.answers.is_empty());
    assert_eq!(dns.ask_stream(&asked).await.answers.len(), 200);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    asked.set_edns(edns);
    let cut = dns.ask(&asked).await;
    assert!(cut.metadata.truncation && cut.edns.is_some());
    assert_eq!(dns.tasks.shutdown(Duration::from_secs(5)).await, 0);
}

#[tokio::test]
async fn a_taken_port_is_named() {
    let taken = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let (api, tasks) = (FakeApi::new(), Tasks::new());
    let informers = Informers::new(api.client("dns"), &tasks);
    let address = taken.local_addr().unwrap();
    let Err(error) = Dns::bind(&DnsConfig::new("cluster.local", vec![address]), &informers) else {
        panic!("bound a taken port");
    };
    assert!(
        error
            .to_string()
            .starts_with(&format!("cluster DNS cannot listen on {address}: ")),
        "{error}"
    );
    assert!(matches!(
        Dns::bind(&DnsConfig::new("a..b", vec![]), &informers),
        Err(DnsError::Domain(_))
    ));
}

proptest::proptest! {
    #[test]
    fn no_question_breaks_the_zone(name in "[a-d_.0-9\\-]{0,40}(\\.(default|svc|pod))?(\\.svc)?\\.cluster\\.local\\.", kind in 0u16..300) {
        let (zone, source) = (Zone::new("cluster.local").unwrap(), known());
        if let Ok(name) = Name::from_ascii(&name) {
            zone.answer(&source, &name, RecordType::from(kind));
        }
    }
}
