//! Images from a real registry on loopback, in all the ways in which one may behave.

use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::proxy::{Act, Edit, Proxy};
use crate::server::Server;
use crate::support::{Room, done, noise, refused};

/// A registry with `group/app:1`, of three layers, one of them large; its address.
pub fn registry(room: &Room) -> Server {
    room.layout();
    std::fs::write(room.path("large"), noise(3 << 20)).expect("a file");
    room.insert("v1", "large", "/large");
    let server = Server::start(&room.path(""), "plain", "");
    room.run(&format!("skopeo copy --dest-tls-verify=false oci:layout:v1 docker://{server}/group/app:1"));
    server
}

/// Paths of blobs, as requested, that begin at a byte other than the first.
fn resumed(log: &[String]) -> usize {
    log.iter().filter(|line| line.contains("/blobs/") && line.contains("bytes=") && !line.contains("bytes=0-")).count()
}

#[test]
fn an_image_is_pulled_as_it_is() {
    let room = Room::new();
    let server = registry(&room);
    assert_eq!(room.done(&format!("pull {server}/group/app:1")), format!("{server}/group/app:1\n"));
    room.is_same(&format!("{server}/group/app:1"), "oci:layout:v1");
    room.is_same(&format!("{server}/group/app:1"), &format!("--tls-verify=false docker://{server}/group/app:1"));
    let digest = room.skopeo("oci:layout:v1")["Digest"].as_str().expect("a digest").to_owned();
    room.done(&format!("rm {server}/group/app:1"));
    // No authority is needed where there is no TLS.
    done(room.image(&format!("pull -q docker://{server}/group/app@{digest}")).env("SSL_CERT_FILE", "nothing"));
    room.is_same(&digest, "oci:layout:v1");
    // What is pinned and here needs no registry.
    drop(server);
    assert!(room.done(&format!("inspect {digest}")).contains(&digest));
    let name = room.json("ls --json")[0]["names"][0].as_str().expect("a name").to_owned();
    room.done(&format!("pull {name}"));
    assert!(room.refused(&format!("pull {}", name.replace(&digest[..9], "sha256:00"))).contains("connection refused"));
}

#[test]
fn what_is_not_there_is_one_line() {
    let room = Room::new();
    let server = registry(&room);
    for name in ["group/app:2", "nothing:1"] {
        let why = room.refused(&format!("pull {server}/{name}"));
        let wanted = format!("vmm: {server}/{name}: the registry does not have the image {server}/{name} (HTTP 404)");
        assert!(why.starts_with(&wanted), "{why}");
    }
    assert!(room.refused(&format!("pull {server}/App")).contains("column"));
    let why = room.refused("pull localhost:1/app:1");
    assert!(why.ends_with("localhost:1: connection refused"), "{why}");
    assert!(room.refused("pull no-such-host.invalid/app:1").contains("no such host"));
    assert_eq!(room.files("blobs/sha256").len(), 0);
}

#[test]
fn latest_is_warned_of() {
    let room = Room::new();
    let server = registry(&room);
    room.run(&format!("skopeo copy --dest-tls-verify=false oci:layout:v1 docker://{server}/app:latest"));
    for (name, warned) in [("app", true), ("app:latest", true), ("group/app:1", false)] {
        let output = room.image(&format!("pull {server}/{name}")).output().expect("run it");
        let text = String::from_utf8(output.stderr).expect("text");
        assert!(output.status.success() && text.contains("warning") == warned, "{name}: {text}");
    }
}

/// An authority `ca.pem`, and of it a certificate `cert.pem` with `key.pem` for this machine.
fn certificates(room: &Room) {
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes";
    room.run(&format!("openssl req -x509 {key} -keyout ca.key -out ca.pem -days 2 -subj /CN=authority"));
    room.run(&format!("openssl req {key} -keyout key.pem -out request.pem -subj /CN=registry"));
    std::fs::write(room.path("names"), "subjectAltName=IP:127.0.0.1,DNS:localhost\n").expect("a file");
    let sign = "openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -days 2";
    room.run(&format!("{sign} -extfile names -out cert.pem"));
}

#[test]
fn tls_is_checked() {
    let room = Room::new();
    room.layout();
    certificates(&room);
    let server = Server::start(&room.path(""), "tls", "http: {tls: {certificate: cert.pem, key: key.pem}}");
    std::fs::create_dir(room.path("trusted")).expect("a directory");
    std::fs::copy(room.path("ca.pem"), room.path("trusted/ca.crt")).expect("a copy");
    room.run(&format!("skopeo copy --dest-cert-dir trusted oci:layout:v1 docker://{server}/app:1"));
    let pull = format!("pull {server}/app:1");
    let why = room.refused(&pull);
    assert!(why.contains("certificate is not trusted") && why.contains("--ca-file"), "{why}");
    assert!(room.refused(&format!("pull --ca-file nothing {server}/app:1")).contains("can not read nothing"));
    assert!(room.refused(&format!("pull --ca-file text {server}/app:1")).contains("no certificate in it"));
    assert!(room.refused(&format!("pull --plain-http {server}/app:1")).contains("HTTP 400"));
    room.done(&format!("pull --ca-file ca.pem {server}/app:1"));
    room.is_same(&format!("{server}/app:1"), "oci:layout:v1");
    let other = format!("pull localhost:{}/app:1", server.port);
    done(room.image(&other).env("SSL_CERT_FILE", "ca.pem"));
    // A certificate for another host.
    assert!(
        refused(room.image(&format!("pull [::1]:{}/app:1", server.port)).env("SSL_CERT_FILE", "ca.pem"))
            .contains("refused")
    );
    let push = format!("push --ca-file ca.pem {server}/app:1 {server}/pushed:1");
    room.done(&push);
    assert_eq!(
        room.skopeo(&format!("--cert-dir trusted docker://{server}/pushed:1"))["Digest"],
        room.json("ls --json")[0]["digest"]
    );
}

#[test]
fn connections_that_break_are_gone_on_with() {
    let room = Room::new();
    let server = registry(&room);
    // Each blob breaks twice, in its middle.
    let proxy = Proxy::start(server.port, |request, before| {
        if request.path.contains("/blobs/") && before < 2 { Act::Cut(100_000) } else { Act::Pass }
    });
    room.done(&format!("pull {proxy}/group/app:1"));
    room.is_same(&format!("{proxy}/group/app:1"), "oci:layout:v1");
    let log = proxy.log();
    assert!(log.iter().any(|line| line.contains("bytes=100000-")), "{log:?}");
    assert!(log.iter().any(|line| line.contains("bytes=200000-")), "{log:?}");
}

#[test]
fn a_registry_without_ranges_is_patiently_read() {
    let room = Room::new();
    let server = registry(&room);
    let proxy = Proxy::start(server.port, |request, before| match request.path.contains("/blobs/") {
        true if before < 1 => Act::Cut(100_000),
        true => Act::WithoutRange,
        false => Act::Pass,
    });
    room.done(&format!("pull {proxy}/group/app:1"));
    room.is_same(&format!("{proxy}/group/app:1"), "oci:layout:v1");
    assert!(resumed(&proxy.log()) > 0);
}

#[test]
fn a_registry_may_ask_for_patience() {
    let room = Room::new();
    let server = registry(&room);
    let proxy = Proxy::start(server.port, |request, before| match before {
        0 if request.path.contains("/v2/group") => {
            Act::Answer("HTTP/1.1 429 Slow\r\nretry-after: 1\r\ncontent-length: 0\r\n".into())
        }
        1 if request.path.contains("/v2/group") => Act::json(500, r#"{"errors":[{"message":"out of luck"}]}"#),
        _ => Act::Pass,
    });
    let began = Instant::now();
    let output = room.image(&format!("pull {proxy}/group/app:1")).output().expect("vmm");
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{told}");
    assert!(began.elapsed() >= Duration::from_secs(1), "the registry asked for a second");
    assert!(told.contains("vmm: the registry has had too many requests (HTTP 429); it asks to wait 1 s\n"), "{told}");
    assert!(told.contains("vmm: the registry has a fault (HTTP 500): out of luck; trying again in 1 s\n"), "{told}");
    room.is_same(&format!("{proxy}/group/app:1"), "oci:layout:v1");
}

#[test]
fn patience_ends() {
    let room = Room::new();
    let server = registry(&room);
    for (status, head, why) in [
        (429, "retry-after: 3600\r\n", "too many requests (HTTP 429): out of luck; it wants 3600 s of patience"),
        (500, "", "the registry has a fault (HTTP 500): out of luck (tried 5 times)"),
        (403, "", "does not allow access to the image"),
        (418, "", "answers what is not understood (HTTP 418)"),
    ] {
        let proxy = Proxy::start(server.port, move |request, _| match request.path.contains("/manifests/") {
            true => {
                let body = r#"{"errors":[{"message":"out of luck"}]}"#;
                Act::Answer(format!("HTTP/1.1 {status} No\r\n{head}content-length: {}\r\n\r\n{body}", body.len()))
            }
            false => Act::Pass,
        });
        let told = room.gives_up(&format!("pull {proxy}/group/app:1"));
        assert!(told.contains(why), "{told}");
    }
    // Bodies that always end in their middle.
    let proxy =
        Proxy::start(server.port, |request, _| if request.path.contains("/blobs/") { Act::Cut(0) } else { Act::Pass });
    let told = room.gives_up(&format!("pull {proxy}/group/app:1"));
    assert!(told.contains("tried 5 times"), "{told}");
    let proxy = Proxy::start(
        server.port,
        |request, _| if request.path.contains("/manifests/") { Act::Cut(100) } else { Act::Pass },
    );
    assert!(room.gives_up(&format!("pull {proxy}/group/app:1")).contains("tried 5 times"));
    assert_eq!(room.json("ls --json"), json!([]));
}

#[test]
fn a_registry_that_lies_is_refused() {
    let room = Room::new();
    let server = registry(&room);
    let size = |more: i64| -> Edit {
        Arc::new(move |body| {
            let mut manifest: Value = serde_json::from_slice(body).expect("a manifest");
            let size = manifest["layers"][2]["size"].as_i64().expect("a size");
            manifest["layers"][2]["size"] = (size + more).into();
            *body = manifest.to_string().into_bytes();
        })
    };
    let lies: [(&'static str, Edit, &str); 4] = [
        ("/blobs/", Arc::new(|body| body[40] ^= 1), "a blob has the digest sha256:"),
        ("/manifests/", size(-10), "bytes instead of"),
        ("/manifests/", size(10), "bytes instead of"),
        ("/manifests/", Arc::new(|body| body.truncate(50)), "the manifest is not understood"),
    ];
    for (place, lie, why) in lies {
        let proxy =
            Proxy::start(
                server.port,
                move |request, _| {
                    if request.path.contains(place) { Act::Edit(lie.clone()) } else { Act::Pass }
                },
            );
        let told = room.refused(&format!("pull {proxy}/group/app:1"));
        assert!(told.contains(why), "{told}");
    }
    // By a digest, the manifest itself is verified.
    let digest = room.skopeo("oci:layout:v1")["Digest"].as_str().expect("a digest").to_owned();
    let proxy = Proxy::start(server.port, move |request, _| {
        if request.path.contains("/manifests/") { Act::Edit(Arc::new(|body| body.push(b' '))) } else { Act::Pass }
    });
    let told = room.refused(&format!("pull {proxy}/group/app@{digest}"));
    assert!(told.contains("the manifest has the digest"), "{told}");
    assert_eq!(room.json("ls --json"), json!([]));
    room.done("prune");
    assert!(room.files("blobs/sha256").is_empty() && room.files("work").is_empty());
}

#[test]
fn of_many_platforms_this_one_s_is_pulled() {
    let room = Room::new();
    let server = registry(&room);
    let digest = room.skopeo("oci:layout:v1")["Digest"].as_str().expect("a digest").to_owned();
    let index = |platforms: &[&str]| {
        let size = room.path(&format!("layout/blobs/sha256/{}", &digest[7..])).metadata().expect("the manifest").len();
        let manifests = platforms.iter().map(|architecture| {
            let media_type = "application/vnd.oci.image.manifest.v1+json";
            json!({"mediaType": media_type, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": architecture}})
        });
        json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": manifests.collect::<Vec<_>>()})
            .to_string()
    };
    let serve = |index: String| {
        Proxy::start(server.port, move |request, _| match request.path.ends_with("/manifests/many") {
            true => Act::json(200, &index),
            false => Act::Pass,
        })
    };
    let proxy = serve(index(&["arm64", "amd64"]));
    room.done(&format!("pull {proxy}/group/app:many"));
    room.is_same(&format!("{proxy}/group/app:many"), "oci:layout:v1");
    let proxy = serve(index(&["arm64", "riscv64"]));
    let told = room.refused(&format!("pull {proxy}/group/app:many"));
    assert!(told.ends_with("the image is for linux/arm64, linux/riscv64; this machine runs linux/amd64"), "{told}");
    // One that is not in an index says it in its configuration.
    room.run("umoci config --image layout:v1 --tag arm --architecture arm64");
    room.run(&format!("skopeo copy --dest-tls-verify=false oci:layout:arm docker://{server}/arm:1"));
    assert!(
        room.refused(&format!("pull {server}/arm:1")).ends_with("is for linux/arm64; this machine runs linux/amd64")
    );
}

/// Two commands for the same image: each blob comes over the wire once.
#[test]
fn the_same_is_not_fetched_twice() {
    let room = Room::new();
    let server = registry(&room);
    let proxy =
        Proxy::start(server.port, |request, _| if request.path.contains("/blobs/") { Act::Slow } else { Act::Pass });
    let pulls: Vec<_> = (0..3)
        .map(|_| {
            let mut command = room.image(&format!("pull {proxy}/group/app:1"));
            command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("start vmm")
        })
        .collect();
    for pull in pulls {
        let output = pull.wait_with_output().expect("its end");
        assert!(output.status.success(), "{output:?}");
    }
    let log = proxy.log();
    let mut blobs: Vec<_> = log.iter().filter(|line| line.contains("/blobs/")).collect();
    let all = blobs.len();
    blobs.sort();
    blobs.dedup();
    assert_eq!((blobs.len(), all), (4, 4), "{log:?}");
    room.is_same(&format!("{proxy}/group/app:1"), "oci:layout:v1");
}

#[test]
fn a_killed_pull_is_gone_on_with() {
    let room = Room::new();
    let server = registry(&room);
    // The large blob stands still after its first half, until the pull is killed.
    let proxy = Proxy::start(server.port, |request, before| {
        if request.path.contains("/blobs/") && before == 0 { Act::Stall(1 << 20) } else { Act::Pass }
    });
    let mut command = room.image(&format!("pull {proxy}/group/app:1"));
    let mut pull = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("start vmm");
    let part = || {
        room.store()
            .join("work")
            .read_dir()
            .ok()?
            .filter_map(|one| one.ok()?.metadata().ok())
            .map(|one| one.len())
            .max()
    };
    let until = Instant::now() + Duration::from_secs(30);
    while part().unwrap_or(0) < 500_000 {
        assert!(Instant::now() < until, "nothing comes");
        std::thread::sleep(Duration::from_millis(5));
    }
    pull.kill().expect("kill it");
    pull.wait().expect("its end");
    assert_eq!(room.json("ls --json"), json!([]));
    room.done(&format!("pull {proxy}/group/app:1"));
    room.is_same(&format!("{proxy}/group/app:1"), "oci:layout:v1");
    assert!(resumed(&proxy.log()) > 0, "{:?}", proxy.log());
}

#[test]
fn what_is_pushed_others_pull() {
    let room = Room::new();
    let server = registry(&room);
    room.done("import oci:layout:v1 app:1");
    let proxy = Proxy::start(server.port, |_, _| Act::Pass);
    room.done(&format!("push app:1 {proxy}/new/app:7"));
    room.is_same("app:1", &format!("--tls-verify=false docker://{server}/new/app:7"));
    let uploads =
        |proxy: &Proxy| proxy.log().iter().filter(|line| line.starts_with("PUT") && line.contains("/blobs/")).count();
    assert_eq!(uploads(&proxy), 4);
    // What is there is not sent again.
    room.done(&format!("push app:1 {proxy}/new/app:8"));
    assert_eq!(uploads(&proxy), 4);
    room.is_same("app:1", &format!("--tls-verify=false docker://{server}/new/app:8"));
    assert!(room.refused(&format!("push nothing:1 {server}/x:1")).contains("no image `nothing:1`"));
    let closed =
        Proxy::start(server.port, |request, _| if request.method == "POST" { Act::json(405, "{}") } else { Act::Pass });
    let why = room.refused(&format!("push app:1 {closed}/other:1"));
    assert!(why.contains("HTTP 405"), "{why}");
}
