//! Credentials that are none, and paths and requests that are not what they seem. Each attempt is counted; one that gets through is
//! named.

use crate::attempts::{Attempts, get, make, named, pod, raw};
use crate::common::Api;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sampan_pki::token::TokenKeys;
use sampan_pki::{Identity, LeafSpec};
use serde_json::{Value, json};

#[tokio::test]
async fn credentials_that_are_none() {
    let api = Api::start().await;
    let pki = api.server.pki.clone();
    let mut attempts = Attempts::default();
    make(&api, "default", "serviceaccounts", named("ServiceAccount", "robot")).await;
    let account = api.get("/api/v1/namespaces/default/serviceaccounts/robot").await.ok();
    let uid = account["metadata"]["uid"].as_str().unwrap().to_owned();
    let bearer = |token: &str| format!("Authorization: Bearer {token}\r\n");
    let keys = pki.tokens();
    let now = jiff::Timestamp::now().as_second();
    let claims = |change: &dyn Fn(&mut Value)| {
        let mut claims = json!({"aud": [keys.issuer()], "exp": now + 600, "iat": now, "nbf": now, "iss": keys.issuer(),
            "sub": "system:serviceaccount:default:robot", "jti": "1",
            "kubernetes.io": {"namespace": "default", "serviceaccount": {"name": "robot", "uid": uid}}});
        change(&mut claims);
        keys.sign_claims(&claims).unwrap()
    };
    let good = claims(&|_| {});
    assert_eq!(get(&api, None, "/api", &bearer(&good)).await.0, 200);
    let (head, rest) = good.split_once('.').unwrap();
    let (payload, signature) = rest.split_once('.').unwrap();
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    let symmetric = URL_SAFE_NO_PAD.encode(r#"{"alg":"HS256"}"#);
    let stranger = TokenKeys::ephemeral(keys.issuer()).unwrap();
    let mut tokens = vec![
        ("expired", claims(&|c| c["exp"] = (now - 120).into())),
        ("not yet", claims(&|c| c["nbf"] = (now + 600).into())),
        ("of the future", claims(&|c| c["iat"] = (now + 600).into())),
        ("without an end", claims(&|c| c["exp"] = Value::Null)),
        ("for somebody else", claims(&|c| c["aud"] = json!(["vault"]))),
        (
            "of another issuer",
            claims(&|c| c["iss"] = "https://evil.example".into()),
        ),
        (
            "of another account",
            claims(&|c| c["sub"] = "system:serviceaccount:kube-system:mighty".into()),
        ),
        (
            "of an account that is gone",
            claims(&|c| c["kubernetes.io"]["serviceaccount"]["uid"] = "old".into()),
        ),
        (
            "of a Pod that never was",
            claims(&|c| c["kubernetes.io"]["pod"] = json!({"name": "p", "uid": "u"})),
        ),
        (
            "of a Secret that never was",
            claims(&|c| c["kubernetes.io"]["secret"] = json!({"name": "p", "uid": "u"})),
        ),
        (
            "of a Node that never was",
            claims(&|c| c["kubernetes.io"]["node"] = json!({"name": "p", "uid": "u"})),
        ),
        ("legacy without a Secret", {
            let account = sampan_pki::token::ObjectRef::new("robot", uid.clone());
            let claims = sampan_pki::token::LegacyClaims {
                namespace: "default".into(),
                service_account: account,
                secret: "none".into(),
            };
            keys.issue_legacy(&claims).unwrap()
        }),
        ("unsigned", format!("{none}.{payload}.")),
        ("unsigned, with a signature", format!("{none}.{payload}.{signature}")),
        ("symmetric", format!("{symmetric}.{payload}.{signature}")),
        ("cut", format!("{head}.{payload}.{}", &signature[..20])),
        ("without a signature", format!("{head}.{payload}.")),
        (
            "of a stranger",
            stranger
                .sign_claims(&json!({"iss": keys.issuer(), "exp": now + 600}))
                .unwrap(),
        ),
        ("nothing", "x".into()),
        ("points", "..".into()),
        ("a bootstrap token that never was", "abc123.0123456789abcdef".into()),
    ];
    // Replayed after the Pod is gone, and after its name is another's.
    make(&api, "default", "pods", pod("p", "", "x", "robot")).await;
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "p"}}});
    let issued = api
        .post("/api/v1/namespaces/default/serviceaccounts/robot/token", request)
        .await
        .ok();
    let of_pod = issued["status"]["token"].as_str().unwrap().to_owned();
    assert_eq!(get(&api, None, "/api", &bearer(&of_pod)).await.0, 200);
    api.delete("/api/v1/namespaces/default/pods/p?gracePeriodSeconds=0")
        .await
        .ok();
    attempts.note(
        "replayed after the Pod is gone",
        get(&api, None, "/api", &bearer(&of_pod)).await.0 == 401,
    );
    make(&api, "default", "pods", pod("p", "", "x", "robot")).await;
    tokens.push(("replayed by a Pod of the same name", of_pod));
    for (what, token) in &tokens {
        let (code, text) = get(&api, None, "/api", &bearer(token)).await;
        let learned = ["expired", "audience", "signature", "invalid", "not found"]
            .iter()
            .any(|word| text.contains(word));
        attempts.note(format!("a token {what}: {code} {text}"), code == 401 && !learned);
    }
    for headers in [
        "Authorization: Basic YWRtaW46YWRtaW4=\r\n",
        "Authorization: Bearer\r\n",
        "Authorization: Bearer \r\n",
        "Authorization: Negotiate x\r\n",
    ] {
        attempts.note(headers, get(&api, None, "/api", headers).await.0 == 401);
    }

    // Certificates.
    let file = |name: &str| std::fs::read_to_string(api.server.dir().join("pki").join(name)).unwrap();
    let ours = || {
        rcgen::Issuer::from_ca_cert_pem(&file("ca.crt"), rcgen::KeyPair::from_pem(&file("ca.key")).unwrap()).unwrap()
    };
    let theirs = || {
        let name = "front-proxy-ca";
        let key = rcgen::KeyPair::from_pem(&file(&format!("{name}.key"))).unwrap();
        rcgen::Issuer::from_ca_cert_pem(&file(&format!("{name}.crt")), key).unwrap()
    };
    let certificate = |from: i32, until: i32, client: bool, by: Option<rcgen::Issuer<'static, rcgen::KeyPair>>| {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, "kubernetes-admin");
        params
            .distinguished_name
            .push(rcgen::DnType::OrganizationName, "system:masters");
        params.not_before = rcgen::date_time_ymd(from, 1, 1);
        params.not_after = rcgen::date_time_ymd(until, 1, 1);
        params.extended_key_usages = vec![match client {
            true => rcgen::ExtendedKeyUsagePurpose::ClientAuth,
            false => rcgen::ExtendedKeyUsagePurpose::ServerAuth,
        }];
        let made = match by {
            Some(issuer) => params.signed_by(&key, &issuer).unwrap(),
            None => params.self_signed(&key).unwrap(),
        };
        Identity::parse(made.pem(), key.serialize_pem()).unwrap()
    };
    let fine = certificate(2020, 2099, true, Some(ours()));
    assert_eq!(get(&api, Some(&fine), "/api/v1/nodes", "").await.0, 200);
    for (what, identity) in [
        ("expired", certificate(2010, 2020, true, Some(ours()))),
        ("not yet valid", certificate(2090, 2099, true, Some(ours()))),
        ("for servers", certificate(2020, 2099, false, Some(ours()))),
        ("of nobody", certificate(2020, 2099, true, None)),
        (
            "of the front proxy's authority",
            certificate(2020, 2099, true, Some(theirs())),
        ),
    ] {
        let (code, text) = get(&api, Some(&identity), "/api/v1/nodes", "").await;
        attempts.note(format!("a certificate {what}: {code} {text}"), code == 401 || code == 0);
    }

    // Names in headers, from anybody but the front proxy.
    let joe = pki.issue(&LeafSpec::client("joe", None)).unwrap();
    let lookalike = pki.issue(&LeafSpec::client("front-proxy-client", None)).unwrap();
    let spoof = "X-Remote-User: kubernetes-admin\r\nX-Remote-Group: system:masters\r\n";
    for (what, identity, headers, expected) in [
        ("nobody", None, spoof, 401),
        ("joe", Some(&joe), spoof, 403),
        ("a look-alike", Some(&lookalike), spoof, 403),
        (
            "joe in lower case",
            Some(&joe),
            "x-remote-user: admin\r\nx-remote-group: system:masters\r\n",
            403,
        ),
        (
            "joe forwarded",
            Some(&joe),
            "X-Forwarded-User: admin\r\nX-Forwarded-Groups: system:masters\r\n",
            403,
        ),
        (
            "joe as another",
            Some(&joe),
            "Impersonate-User: kubernetes-admin\r\nImpersonate-Group: system:masters\r\n",
            403,
        ),
        (
            "joe with extras",
            Some(&joe),
            "X-Remote-Extra-Scopes: all\r\nX-Remote-Uid: 0\r\n",
            403,
        ),
        (
            "nobody impersonating",
            None,
            "Impersonate-User: kubernetes-admin\r\n",
            401,
        ),
        (
            "an expired proxy",
            Some(&certificate(2010, 2020, true, Some(theirs()))),
            spoof,
            401,
        ),
    ] {
        let (code, text) = get(&api, identity, "/api/v1/nodes", headers).await;
        attempts.note(format!("{what}: {code} {text}"), code == expected);
    }
    attempts.all_refused("credentials that are none", 40);
}

#[tokio::test]
async fn paths_and_requests_that_are_not_what_they_seem() {
    let api = Api::start().await;
    let mut secret = named("Secret", "treasure");
    secret["stringData"] = json!({"a": "b"});
    make(&api, "kube-system", "secrets", secret.clone()).await;
    make(&api, "default", "secrets", secret).await;
    // Joe may read Pods of one namespace, and all that is open to everybody.
    let rbac = "/apis/rbac.authorization.k8s.io/v1/namespaces/default";
    let role = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "pods"},
        "rules": [{"apiGroups": [""], "resources": ["pods", "pods/log"], "verbs": ["get", "list"]}]});
    api.post(&format!("{rbac}/roles"), role).await.ok();
    let binding = json!({"apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "pods"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "pods"},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "joe"}]});
    api.post(&format!("{rbac}/rolebindings"), binding).await.ok();
    let joe = api.server.pki.issue(&LeafSpec::client("joe", None)).unwrap();
    assert_eq!(
        get(&api, Some(&joe), "/api/v1/namespaces/default/pods", "").await.0,
        200
    );
    let mut attempts = Attempts::default();
    let d = "/api/v1/namespaces/default";
    for path in [
        "/api/v1/secrets".to_owned(),
        "/api/v1/secrets/".into(),
        "//api/v1/secrets".into(),
        "/api//v1/secrets".into(),
        "/api/v1//secrets".into(),
        "/api/v1/./secrets".into(),
        "/./api/v1/secrets".into(),
        "/API/V1/SECRETS".into(),
        "/Api/v1/secrets".into(),
        "/api/v1/Secrets".into(),
        "/api/v1/secrets;".into(),
        "/api/v1/secrets;a=b".into(),
        "/api/v1/secrets.".into(),
        "/api/v1/secrets%20".into(),
        "/api/v1/secrets%00".into(),
        "/api/v1/secrets%2f".into(),
        "/api/v1/secrets%3fwatch=1".into(),
        "/api/v1/watch/secrets".into(),
        "/%61pi/v1/secrets".into(),
        "/api/v1/%73ecrets".into(),
        "/api%2fv1%2fsecrets".into(),
        "/healthz/../api/v1/secrets".into(),
        "/healthz/%2e%2e/api/v1/secrets".into(),
        "/healthz/..%2fapi/v1/secrets".into(),
        "/healthz%2f..%2fapi%2fv1%2fsecrets".into(),
        "/version/../api/v1/secrets".into(),
        "/version/..;/api/v1/secrets".into(),
        "/openapi/../api/v1/secrets".into(),
        format!("{d}/../kube-system/secrets"),
        format!("{d}/%2e%2e/kube-system/secrets"),
        format!("{d}/..%2fkube-system%2fsecrets"),
        format!("{d}%2f..%2fkube-system/secrets"),
        format!("{d}/pods/../secrets"),
        format!("{d}/pods/../secrets/treasure"),
        format!("{d}/pods/%2e%2e/secrets"),
        format!("{d}/pods/%2e%2e%2fsecrets%2ftreasure"),
        format!("{d}/pods/..%2fsecrets"),
        format!("{d}/pods/..\\secrets"),
        format!("{d}/pods/.%2e/secrets/treasure"),
        format!("{d}/pods;/../secrets"),
        format!("{d}/pods/..;/secrets"),
        format!("{d}/pods/x/../../secrets"),
        format!("{d}/pods/x/log/../../../secrets"),
        format!("{d}/pods/%252e%252e/secrets"),
        format!("{d}/pods/%c0%ae%c0%ae/secrets"),
        format!("{d}/secrets?fieldSelector=metadata.name%3Dpods"),
        format!("{d}./secrets"),
        format!("{d}%00/secrets"),
        "/api/v1/namespaces/kube-system%2f/secrets".into(),
        "/api/v1/namespaces//secrets".into(),
        "/api/v1/namespaces/*/secrets".into(),
        "/api/v1/namespaces/default,kube-system/secrets".into(),
        "https://x/api/v1/secrets".into(),
        "http://127.0.0.1/api/v1/secrets".into(),
        "/apis/../api/v1/secrets".into(),
        "/apis//v1/secrets".into(),
    ] {
        let (code, text) = get(&api, Some(&joe), &path, "").await;
        attempts.note(
            format!("{path}: {code} {text}"),
            !text.contains("treasure\"") && !(200..300).contains(&code),
        );
    }
    // What changes the meaning of a request.
    for headers in [
        "X-HTTP-Method-Override: DELETE\r\n",
        "X-Original-URL: /api/v1/secrets\r\n",
        "X-Rewrite-URL: /api/v1/secrets\r\n",
        "X-Forwarded-Prefix: /api/v1/secrets\r\n",
        "X-Forwarded-For: 127.0.0.1\r\n",
    ] {
        let (_, text) = get(&api, Some(&joe), &format!("{d}/pods"), headers).await;
        attempts.note(
            format!("{headers}: {text}"),
            text.contains("PodList") && !text.contains("treasure\""),
        );
    }

    // A second request inside the first: it must not be answered.
    let inner = format!("GET {d}/pods HTTP/1.1\r\nHost: x\r\n\r\n");
    let length = inner.len();
    let post = "POST /apis/authentication.k8s.io/v1/selfsubjectreviews HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n";
    for (what, request) in [
        (
            "two lengths",
            format!("{post}Content-Length: 0\r\nContent-Length: {length}\r\n\r\n{inner}"),
        ),
        (
            "two lengths in one",
            format!("{post}Content-Length: 0, {length}\r\n\r\n{inner}"),
        ),
        (
            "a length with a sign",
            format!("{post}Content-Length: +{length}\r\n\r\n{inner}"),
        ),
        ("a negative length", format!("{post}Content-Length: -1\r\n\r\n{inner}")),
        (
            "a length in hexadecimal",
            format!("{post}Content-Length: 0x0\r\n\r\n{inner}"),
        ),
        (
            "a length that overflows",
            format!("{post}Content-Length: 18446744073709551616\r\n\r\n{inner}"),
        ),
        (
            "chunked that is not last",
            format!("{post}Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n{inner}"),
        ),
        (
            "an unknown coding",
            format!("{post}Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n{inner}"),
        ),
        (
            "a chunk without a size",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n\r\n\r\n{inner}"),
        ),
        (
            "a chunk of no number",
            format!("{post}Transfer-Encoding: chunked\r\n\r\nzz\r\n\r\n{inner}"),
        ),
        (
            "a negative chunk",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n-1\r\n\r\n{inner}"),
        ),
        (
            "a chunk that overflows",
            format!("{post}Transfer-Encoding: chunked\r\n\r\nffffffffffffffff1\r\n\r\n{inner}"),
        ),
        (
            "a chunk with a wrong end",
            format!("{post}Transfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n0\r\n\r\n{inner}"),
        ),
        (
            "a folded header",
            format!("{post}X-A: b\r\n Content-Length: 0\r\n\r\n{inner}"),
        ),
        (
            "a folded coding",
            format!("{post}Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n{inner}"),
        ),
        (
            "a blank before the colon",
            format!("{post}Content-Length : 0\r\n\r\n{inner}"),
        ),
        ("a blank in the name", format!("{post}Content Length: 0\r\n\r\n{inner}")),
        (
            "a NUL in a header",
            format!("{post}X-A: a\0b\r\nContent-Length: 0\r\n\r\n{inner}"),
        ),
        ("no version", format!("GET /api/v1/secrets\r\n\r\n{inner}")),
        (
            "an unknown version",
            format!("GET /version HTTP/9.9\r\nHost: x\r\n\r\n{inner}"),
        ),
        (
            "a blank in the target",
            format!("GET /version x HTTP/1.1\r\nHost: x\r\n\r\n{inner}"),
        ),
    ] {
        let answer = raw(&api, Some(&joe), "http/1.1", request.as_bytes()).await;
        let text = String::from_utf8_lossy(&answer).into_owned();
        attempts.note(format!("{what}: {text}"), !text.contains("PodList"));
    }

    // HTTP/2: what stands for the first line, twice, misplaced, or not at all.
    let frame = |kind: u8, flags: u8, stream: u32, payload: &[u8]| {
        let mut bytes = u32::try_from(payload.len()).unwrap().to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        bytes
    };
    let literal = |name: &str, value: &str| {
        let mut bytes = vec![0, u8::try_from(name.len()).unwrap()];
        bytes.extend(name.as_bytes());
        bytes.push(u8::try_from(value.len()).unwrap());
        bytes.extend(value.as_bytes());
        bytes
    };
    let block = |fields: &[(&str, &str)]| {
        fields
            .iter()
            .flat_map(|(name, value)| literal(name, value))
            .collect::<Vec<u8>>()
    };
    let request = |fields: &[(&str, &str)]| {
        let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        bytes.extend(frame(1, 5, 1, &block(fields)));
        bytes
    };
    let answered = |bytes: &[u8]| {
        // A head whose first field is the status 200 of the static table.
        let mut rest = bytes;
        while let [a, b, c, kind, _flags, _s @ ..] = rest {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            if *kind == 1 && rest.get(9) == Some(&0x88) {
                return true;
            }
            rest = rest.get(9 + length..).unwrap_or_default();
        }
        false
    };
    let (method, scheme, authority) = ((":method", "GET"), (":scheme", "https"), (":authority", "x"));
    let path = (":path", "/version");
    assert!(answered(
        &raw(&api, Some(&joe), "h2", &request(&[method, scheme, authority, path])).await
    ));
    let secrets = (":path", "/api/v1/secrets");
    for fields in [
        vec![method, scheme, authority, path, secrets],
        vec![method, scheme, authority, secrets, path],
        vec![method, method, scheme, authority, path],
        vec![method, scheme, authority],
        vec![method, authority, path],
        vec![scheme, authority, path],
        vec![method, scheme, authority, (":path", "")],
        vec![method, scheme, authority, (":path", "version")],
        vec![method, scheme, authority, path, ("connection", "close")],
        vec![method, scheme, authority, path, ("transfer-encoding", "chunked")],
        vec![method, scheme, authority, path, ("X-Upper", "a")],
        vec![method, scheme, authority, path, (":status", "200")],
        vec![method, scheme, authority, path, (":unknown", "a")],
        vec![("a", "b"), method, scheme, authority, path],
        vec![method, scheme, authority, path, ("content-length", "5")],
        vec![method, scheme, authority, (":path", "/version\r\nX: y")],
        vec![
            method,
            scheme,
            authority,
            (":path", "/api/v1/namespaces/default/pods/../secrets"),
        ],
    ] {
        let bytes = raw(&api, Some(&joe), "h2", &request(&fields)).await;
        attempts.note(format!("HTTP/2 {fields:?}"), !answered(&bytes));
    }
    // A length that is too much for what follows is told by the end of the stream; the rest must not be taken.
    attempts.all_refused("paths and requests that are not what they seem", 95);
}
