//! Specifications of containers, from images and flags.

use super::*;

fn words(text: &str) -> Option<Vec<String>> {
    Some(text.split(' ').map(str::to_owned).collect())
}

fn image() -> RunConfig {
    RunConfig { entrypoint: words("/entry -x"), cmd: words("serve it"), env: words("A=1 B=2"), ..RunConfig::default() }
}

fn of(wishes: &Wishes) -> Value {
    spec(&image(), wishes).unwrap()
}

#[test]
fn the_command_is_put_together_as_docker_does() {
    let args = |entrypoint: Option<&str>, args: &str| {
        let args = words(args).unwrap().into_iter().filter(|word| !word.is_empty()).collect();
        let wishes = Wishes { entrypoint: entrypoint.map(str::to_owned), args, ..Wishes::default() };
        spec(&image(), &wishes).map(|spec| spec["process"]["args"].clone())
    };
    assert_eq!(args(None, "").unwrap(), json!(["/entry", "-x", "serve", "it"]));
    assert_eq!(args(None, "now").unwrap(), json!(["/entry", "-x", "now"]));
    assert_eq!(args(Some("sh"), "").unwrap(), json!(["sh"]));
    assert_eq!(args(Some("sh"), "-c x").unwrap(), json!(["sh", "-c", "x"]));
    assert_eq!(args(Some(""), "ls").unwrap(), json!(["ls"]));
    assert_eq!(args(Some(""), "").unwrap_err(), SpecError::NoCommand);
    assert_eq!(spec(&RunConfig::default(), &Wishes::default()).unwrap_err(), SpecError::NoCommand);
}

#[test]
fn variables_of_the_user_replace_those_of_the_image() {
    let env = words("B=3 C=4 A").unwrap();
    let spec = of(&Wishes { env, hostname: "h".to_owned(), ..Wishes::default() });
    assert_eq!(spec["process"]["env"], json!([PATH, "HOSTNAME=h", "B=3", "C=4"]));
}

#[test]
fn capabilities_are_added_and_dropped() {
    let caps = |add: &[&str], drop: &[&str]| {
        let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let wishes = Wishes { cap_add: own(add), cap_drop: own(drop), ..Wishes::default() };
        spec(&image(), &wishes).map(|spec| spec["process"]["capabilities"]["bounding"].as_array().unwrap().clone())
    };
    assert_eq!(caps(&[], &[]).unwrap().len(), USUAL.len());
    assert!(caps(&["cap_net_admin"], &[]).unwrap().contains(&json!("CAP_NET_ADMIN")));
    assert!(!caps(&[], &["MKNOD"]).unwrap().contains(&json!("CAP_MKNOD")));
    assert_eq!(caps(&["CHOWN"], &["ALL"]).unwrap(), [json!("CAP_CHOWN")]);
    assert_eq!(caps(&["all"], &["SYS_ADMIN"]).unwrap().len(), USUAL.len() + OTHERS.len() - 1);
    assert_eq!(caps(&["FLY"], &[]).unwrap_err(), SpecError::Capability("FLY".to_owned()));
}

#[test]
fn who_loads_a_filter_may_do_so_and_the_program_may_not() {
    let sets = |wishes: &Wishes| {
        let spec = of(wishes);
        let has =
            |set: &str| spec["process"]["capabilities"][set].as_array().unwrap().contains(&json!("CAP_SYS_ADMIN"));
        (has("bounding"), has("effective") && has("permitted"), spec["linux"]["seccomp"].is_object())
    };
    assert_eq!(sets(&Wishes::default()), (false, true, true));
    assert_eq!(sets(&Wishes { no_new_privileges: true, ..Wishes::default() }), (false, false, true));
    let unconfined = Wishes { confinement: Confinement::Unconfined, ..Wishes::default() };
    assert_eq!(sets(&unconfined), (false, false, false));
    let admin = Wishes { cap_add: vec!["SYS_ADMIN".to_owned()], ..Wishes::default() };
    assert_eq!(sets(&admin), (true, true, true));
}

#[test]
fn shared_memory_has_a_size() {
    let size = |shm_bytes| {
        let spec = of(&Wishes { shm_bytes, ..Wishes::default() });
        let mounts = spec["mounts"].as_array().unwrap().clone();
        let shm = mounts.iter().find(|mount| mount["destination"] == "/dev/shm").unwrap();
        shm["options"].as_array().unwrap().last().unwrap().clone()
    };
    assert_eq!((size(None), size(Some(1 << 30))), (json!("size=67108864"), json!("size=1073741824")));
}

#[test]
fn paths_begin_at_the_root() {
    let wishes = Wishes { workdir: Some("here".to_owned()), ..Wishes::default() };
    assert_eq!(wishes.check().unwrap_err().to_string(), "--workdir here: it is a path from / on");
    assert_eq!(spec(&image(), &wishes), wishes.check().map(|()| Value::Null));
    let image = RunConfig { working_dir: Some("here".to_owned()), ..image() };
    let why = spec(&image, &Wishes::default()).unwrap_err().to_string();
    assert_eq!(why, "the WorkingDir of its configuration, here: it is a path from / on");
    assert!(spec(&image, &Wishes { workdir: Some("/".to_owned()), ..Wishes::default() }).is_ok());
    let wishes = Wishes { tmpfs: vec!["/t:size=1m".to_owned(), "u".to_owned()], ..Wishes::default() };
    assert_eq!(wishes.check().unwrap_err(), SpecError::Path("--tmpfs", "u".to_owned()));
}
