//! One image, run from everywhere it may be: a layout, archives of both kinds, a tar on standard input, a registry.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;

use crate::container_life::User;
use crate::server::Server;
use crate::vm::{guest, host};

/// What the image does by itself: it tells its configuration and its files.
const SCRIPT: &str = "id -u; pwd; echo $KIND; md5sum /bin/busybox /etc/passwd; ls -lR /bin /etc/passwd /tmp | md5sum";

/// A shell's words, in this directory.
fn shell(folder: &Path, script: &str, word: &str) -> String {
    let script = format!("set -e; cd \"$0\"; {script}");
    host("sh", &["-c".as_ref(), script.as_ref(), folder.as_os_str(), word.as_ref()])
}

#[test]
fn an_image_runs_unchanged_from_wherever_it_is() {
    let room = tempfile::tempdir().expect("a folder");
    let server = Server::start(room.path(), "plain", "");
    let make = format!(
        "cp -r \"$1\" layout
        umoci config --image layout:latest --tag v1 --config.user web --config.workingdir /srv --config.env KIND=kept \\
            --config.entrypoint sh --config.entrypoint -c --config.cmd '{SCRIPT}'"
    );
    shell(room.path(), &make, &guest("images/busybox").display().to_string());
    let copy = "skopeo copy -q oci:layout:v1 docker-archive:docker.tar:app:1
        skopeo copy -q oci:layout:v1 oci-archive:oci.tar:app:1
        skopeo copy -q --dest-tls-verify=false oci:layout:v1 docker://$1/app:1";
    shell(room.path(), copy, &server.to_string());

    let path = |rest: &str| room.path().join(rest).display().to_string();
    let sources = [
        format!("oci:{}:v1", path("layout")),
        format!("oci-archive:{}", path("oci.tar")),
        format!("docker-archive:{}", path("docker.tar")),
        "-".to_owned(),
        format!("{server}/app:1"),
    ];
    let said = sources.map(|source| {
        // A store of its own, so that each brings its layers itself.
        let user = User::new();
        let mut command = user.command(&["run", "--rm", &source]);
        if source == "-" {
            command.stdin(Stdio::from(File::open(path("docker.tar")).expect("the archive")));
        }
        let output = command.output().expect("vmm run");
        assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    });
    assert!(said[0].starts_with("33\n/srv\nkept\n"), "{}", said[0]);
    let busybox = host("md5sum", &["/bin/busybox".as_ref()]);
    assert!(said[0].contains(busybox.trim_end()), "{}", said[0]);
    for (number, other) in said.iter().enumerate() {
        assert_eq!(*other, said[0], "number {number}");
    }
}
