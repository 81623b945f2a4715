//! Registries that want to know who asks: names and passwords, tokens; for what is pulled and what is pushed.

use serde_json::{Value, json};

use crate::proxy::{Act, Proxy};
use crate::registry::registry;
use crate::server::Server;
use crate::support::{Room, done};

#[test]
fn a_login_is_needed_and_found() {
    let room = Room::new();
    room.layout();
    let accounts = room.run("htpasswd -Bbn me secret");
    std::fs::write(room.path("accounts"), accounts).expect("a file");
    let server = Server::start(&room.path(""), "auth", "auth: {htpasswd: {realm: here, path: accounts}}");
    room.run(&format!(
        "skopeo copy --dest-tls-verify=false --dest-creds me:secret oci:layout:v1 docker://{server}/app:1"
    ));
    room.done("import oci:layout:v1 mine:1");
    let (pull, push) = (format!("pull {server}/app:1"), format!("push mine:1 {server}/pushed:1"));
    for asked in [&pull, &push] {
        assert!(room.refused(asked).ends_with(&format!("(`docker login {server}`)")), "{asked}");
    }
    let login = |auth: Value| {
        std::fs::create_dir_all(room.path(".docker")).expect("a directory");
        std::fs::write(room.path(".docker/config.json"), auth.to_string()).expect("a file");
    };
    // me:wrong, me:secret
    login(json!({"auths": {server.to_string(): {"auth": "bWU6d3Jvbmc="}}}));
    for asked in [&pull, &push] {
        assert!(room.refused(asked).contains("has refused this one (`docker login` stores one) (HTTP 401)"), "{asked}");
    }
    login(json!({"auths": {"other": {"auth": "bWU6c2VjcmV0"}}}));
    assert!(room.refused(&pull).contains("there is none for"));
    login(json!({"auths": {server.to_string(): {"auth": "bWU6c2VjcmV0"}}}));
    room.done(&pull);
    room.is_same(&format!("{server}/app:1"), "oci:layout:v1");
    room.done(&push);
    room.is_same("mine:1", &format!("--tls-verify=false --creds me:secret docker://{server}/pushed:1"));
    login(json!({"auths": {server.to_string(): {"auth": "?"}}}));
    assert!(room.refused(&pull).contains("Docker's config.json"));
    // A helper has it, as on desktops; the configuration is elsewhere.
    login(json!({}));
    let helper = "#!/bin/sh\nread host\necho '{\"ServerURL\":\"'$host'\",\"Username\":\"me\",\"Secret\":\"secret\"}'\n";
    room.program("docker-credential-here", helper);
    std::fs::create_dir(room.path("elsewhere")).expect("a directory");
    let config = json!({"credHelpers": {server.to_string(): "here"}}).to_string();
    std::fs::write(room.path("elsewhere/config.json"), config).expect("a file");
    let path = format!("{}:/usr/bin:/bin", room.path("").display());
    let mut command = room.image(&pull);
    done(command.env("PATH", path).env("DOCKER_CONFIG", room.path("elsewhere")));
}

/// As with large public registries: the registry sends who asks to another server, which gives a token, for as much as was
/// asked for.
#[test]
fn a_token_is_fetched_where_the_registry_says() {
    let room = Room::new();
    let server = registry(&room);
    let proxy = Proxy::start(server.port, |request, _| {
        if request.path.starts_with("/token?") {
            // me:secret
            let known = request.header("authorization") == Some("Basic bWU6c2VjcmV0");
            assert!(request.path.contains("service=here"), "{}", request.path);
            let asked_for = |scope: &str| request.path.contains(&format!("scope=repository%3A{scope}&"));
            return match (known, asked_for("group%2Fapp%3Apull"), asked_for("group%2Fpushed%3Apull%2Cpush")) {
                (true, true, _) => Act::json(200, r#"{"token":"open-sesame"}"#),
                (true, _, true) => Act::json(200, r#"{"token":"take-sesame"}"#),
                _ => Act::json(401, "{}"),
            };
        }
        // The token of one repository opens no other.
        let wanted = if request.path.contains("/group/pushed/") { "Bearer take-sesame" } else { "Bearer open-sesame" };
        if request.header("authorization") == Some(wanted) {
            return Act::Pass;
        }
        let realm = format!("http://{}/token", request.header("host").expect("a host"));
        Act::Answer(format!(
            "HTTP/1.1 401 No\r\nwww-authenticate: Bearer realm=\"{realm}\",service=\"here\"\r\ncontent-length: 0\r\n"
        ))
    });
    let push = format!("push {proxy}/group/app:1 {proxy}/group/pushed:1");
    let pull = format!("pull {proxy}/group/app:1");
    assert!(room.refused(&pull).contains("HTTP 401"));
    std::fs::create_dir(room.path(".docker")).expect("a directory");
    let config = json!({"auths": {proxy.to_string(): {"username": "me", "password": "secret"}}}).to_string();
    std::fs::write(room.path(".docker/config.json"), config).expect("a file");
    room.done(&pull);
    room.is_same(&format!("{proxy}/group/app:1"), "oci:layout:v1");
    room.done(&push);
    room.is_same(&format!("{proxy}/group/app:1"), &format!("--tls-verify=false docker://{server}/group/pushed:1"));
    // What belongs to somebody else is told as such.
    std::fs::remove_file(room.path(".docker/config.json")).expect("it was there");
    assert!(room.refused(&push).contains("HTTP 401"));
}
