//! What each request means: Firecracker's endpoints, and ours in the same style, as requests to the control thread.
//!
//! Before the start a request is an edit of the one configuration, afterwards a change of a running device; what the
//! metadata service tells is no configuration, and changes at any time. What a body may hold is known to the configuration
//! alone. The `api` thread runs this. Source: Firecracker's swagger file and
//! src/firecracker/src/api_server/parsed_request.rs; docs/api.yaml is the reference here.

mod keys;

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use machine::config::{Edit, JsonPath, Step};
use machine::control::{Answer, Client, Hint, Remote, Reply, Request as Order, State};
use machine::metadata::{Store, StoreError};
use machine::metrics::{Endpoint, Metrics};
use serde_json::{Map, Value, json};

use self::keys::{is_deprecated, known, member, only};
use crate::message::{self, Request, Response};

/// The version of Firecracker's API that is spoken.
pub const FIRECRACKER_VERSION: &str = "1.17.0";

/// What answers need to know besides the machine.
pub struct Api {
    /// The machine's control thread.
    pub remote: Remote,
    /// What the metadata service has to tell.
    pub metadata: Arc<Store>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The VM's name.
    pub id: String,
    /// Version of this program.
    pub version: &'static str,
    /// What was asked for, for each of [`ROUTES`] and then for what is none.
    asked: Vec<Arc<Endpoint>>,
}

/// An endpoint.
pub struct Route {
    /// The method.
    pub method: &'static str,
    /// The path; a part in braces stands for a name.
    pub path: &'static str,
    run: fn(&Api, &Call<'_>) -> Outcome,
}

/// A request whose endpoint is known.
struct Call<'a> {
    /// Method and path, for messages.
    source: String,
    /// The name in the path; empty where the endpoint has none.
    name: &'a str,
    body: &'a [u8],
    /// The protocol that it asks for.
    upgrade: Option<&'a str>,
    client: &'a UnixStream,
}

/// What is to be sent, or why not.
type Outcome = Result<Told, Fault>;

/// What is to be sent.
enum Told {
    /// Nothing: it is done.
    Nothing,
    Json(Value),
    /// A text, and what kind of.
    Text(&'static str, String),
    /// What happens, as it happens.
    Events,
    /// Nothing: the connection is the console's.
    HandedOver,
}

/// What requests that no endpoint takes are counted as.
const UNKNOWN: &str = "unknown /unknown";
/// What a client of the console asks the connection to be: bytes of the serial port, in both directions.
pub const CONSOLE_PROTOCOL: &str = "vmm-console";
/// Prometheus' text form.
const EXPOSITION: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why a request is refused.
struct Fault {
    status: u16,
    text: String,
}

impl From<String> for Fault {
    fn from(text: String) -> Self {
        Self { status: 400, text }
    }
}

impl From<&str> for Fault {
    fn from(text: &str) -> Self {
        text.to_owned().into()
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        let status = if error == StoreError::TooLong { 413 } else { 400 };
        Self { status, text: error.to_string() }
    }
}

/// Every endpoint.
pub const ROUTES: &[Route] = &[
    route("GET", "/", |api, _| {
        let state = api.remote.state().map_err(text)?.name();
        Ok(Told::Json(json!({ "app_name": "vmm", "id": api.id, "state": state, "vmm_version": api.version })))
    }),
    route("GET", "/version", |_, _| Ok(Told::Json(json!({ "firecracker_version": FIRECRACKER_VERSION })))),
    route("GET", "/vm/config", |api, _| Ok(Told::Json(describe(api)?.1))),
    route("GET", "/vm/events", |_, _| Ok(Told::Events)),
    route("GET", "/vm/console", |api, call| {
        if call.upgrade != Some(CONSOLE_PROTOCOL) {
            return Err(format!("{}: a header `Upgrade: {CONSOLE_PROTOCOL}` is expected", call.source).into());
        }
        let stream = Arc::new(call.client.try_clone().map_err(text)?);
        let greeting = |took| message::switching(CONSOLE_PROTOCOL, took);
        let client = Client { stream, asked: Instant::now(), greeting };
        api.remote.ask(Order::Console(client)).map(|_| Told::HandedOver).map_err(|refusal| text(refusal).into())
    }),
    route("PATCH", "/vm", |api, call| {
        let order = match member(&call.object()?, "state", &["Paused", "Resumed"])? {
            "Paused" => Order::Pause,
            _ => Order::Resume,
        };
        done(api.remote.ask(order))
    }),
    route("PUT", "/actions", |api, call| {
        let actions = ["InstanceStart", "SendCtrlAltDel", "PowerButton", "Reset", "Stop", "FlushMetrics", "CoreDump"];
        let mut body = call.object()?;
        known(&body, &["action_type", "path_on_host"])?;
        let path = body.remove("path_on_host");
        let action = member(&body, "action_type", &actions)?;
        let order = match (action, path) {
            ("CoreDump", Some(Value::String(path))) => Order::CoreDump { path: path.into() },
            ("CoreDump", _) => return Err("path_on_host is missing: the core file's path".into()),
            (_, Some(_)) => return Err(format!("path_on_host: unknown key of {action}").into()),
            ("InstanceStart", _) => Order::Start,
            ("SendCtrlAltDel", _) => Order::CtrlAltDel,
            ("PowerButton", _) => Order::PowerButton,
            ("Reset", _) => Order::Reset,
            ("Stop", _) => Order::Stop,
            _ => Order::FlushMetrics,
        };
        done(api.remote.ask(order))
    }),
    route("PUT", "/snapshot/create", |api, call| {
        let mut body = call.object()?;
        known(&body, &["snapshot_type", "snapshot_path", "mem_file_path"])?;
        let [state, memory] = ["snapshot_path", "mem_file_path"].map(|key| match body.remove(key) {
            Some(Value::String(path)) => Ok(path.into()),
            _ => Err(format!("{key} is missing: the path of a file that is to be written")),
        });
        if !body.is_empty() {
            member(&body, "snapshot_type", &["Full"])?;
        }
        match (state, memory) {
            (Ok(state), Ok(memory)) => done(api.remote.ask(Order::Save { state, memory })),
            (state, memory) => {
                Err([state, memory].into_iter().filter_map(Result::err).collect::<Vec<_>>().join("\n").into())
            }
        }
    }),
    route("PUT", "/boot-source", |api, call| call.set(api, JsonPath::keys(["boot-source"]))),
    route("GET", "/machine-config", |api, _| Ok(Told::Json(describe(api)?.1["machine-config"].take()))),
    route("PUT", "/machine-config", |api, call| call.set(api, JsonPath::keys(["machine-config"]))),
    route("PATCH", "/machine-config", |api, call| call.patch(api, JsonPath::keys(["machine-config"]))),
    route("PUT", "/cpu-config", |api, call| call.set(api, JsonPath::keys(["cpu-config"]))),
    route("PUT", "/drives/{drive_id}", |api, call| call.set_named(api, "drives", "drive_id")),
    route("PATCH", "/drives/{drive_id}", |api, call| call.update_named(api, "drives", "drive_id")),
    route("DELETE", "/drives/{drive_id}", |api, call| call.remove(api, "drives", "drive_id")),
    route("PUT", "/network-interfaces/{iface_id}", |api, call| call.set_named(api, "network-interfaces", "iface_id")),
    route("PATCH", "/network-interfaces/{iface_id}", |api, call| {
        call.update_named(api, "network-interfaces", "iface_id")
    }),
    route("DELETE", "/network-interfaces/{iface_id}", |api, call| call.remove(api, "network-interfaces", "iface_id")),
    route("PUT", "/shares/{tag}", |api, call| call.set_named(api, "shares", "tag")),
    route("PATCH", "/shares/{tag}", |api, call| call.update_named(api, "shares", "tag")),
    route("DELETE", "/shares/{tag}", |api, call| call.remove(api, "shares", "tag")),
    route("PUT", "/vsock", |api, call| call.set(api, JsonPath::keys(["vsock"]))),
    route("PUT", "/entropy", |api, call| call.set(api, JsonPath::keys(["entropy"]))),
    route("PATCH", "/entropy", |api, call| call.update(api, "rng", call.object()?)),
    route("PUT", "/serial", |api, call| call.set(api, JsonPath::keys(["serial"]))),
    route("PATCH", "/serial", |api, call| call.update(api, "serial", call.object()?)),
    route("GET", "/memory", |api, _| told(api, Order::Resident)),
    route("GET", "/memory/mappings", |api, _| told(api, Order::Mappings)),
    // What is not named stays as it is, as in Firecracker.
    route("PUT", "/logger", |api, call| call.patch(api, JsonPath::keys(["logger"]))),
    route("GET", "/metrics", |api, _| Ok(Told::Text(EXPOSITION, api.metrics.exposition()))),
    route("PUT", "/metrics", |api, call| call.set(api, JsonPath::keys(["metrics"]))),
    route("PUT", "/pmem/{id}", |api, call| call.set_named(api, "pmem", "id")),
    route("PATCH", "/pmem/{id}", |api, call| call.update_named(api, "pmem", "id")),
    route("DELETE", "/pmem/{id}", |api, call| call.remove(api, "pmem", "id")),
    route("GET", "/mmds", |api, _| Ok(Told::Json(api.metadata.get()))),
    route("PUT", "/mmds", |api, call| Ok(api.metadata.put(call.json()?).map(|()| Told::Nothing)?)),
    route("PATCH", "/mmds", |api, call| Ok(api.metadata.patch(&call.json()?).map(|()| Told::Nothing)?)),
    route("PUT", "/mmds/config", |api, call| call.set(api, JsonPath::keys(["mmds-config"]))),
    route("GET", "/balloon", |api, _| there(describe(api)?.1["balloon"].take(), "there is no balloon")),
    route("PUT", "/balloon", |api, call| call.set(api, JsonPath::keys(["balloon"]))),
    route("PATCH", "/balloon", |api, call| {
        let body = call.object()?;
        only(&body, &["amount_mib"])?;
        call.update(api, "balloon", body)
    }),
    route("GET", "/balloon/statistics", |api, _| {
        there(balloon(api, "statistics")?, "the balloon's statistics are off (stats_polling_interval_s)")
    }),
    route("PATCH", "/balloon/statistics", |api, call| {
        let body = call.object()?;
        only(&body, &["stats_polling_interval_s"])?;
        call.update(api, "balloon", body)
    }),
    route("PATCH", "/balloon/hinting/start", |api, call| {
        let body = if call.body.is_empty() { Map::new() } else { call.object()? };
        known(&body, &["acknowledge_on_stop"])?;
        let acknowledge_on_stop = match body.get("acknowledge_on_stop") {
            None | Some(Value::Bool(true)) => true,
            Some(Value::Bool(false)) => false,
            Some(other) => {
                return Err(format!("{}: acknowledge_on_stop is true or false, not {other}", call.source).into());
            }
        };
        done(api.remote.ask(Order::Hint(Hint::Start { acknowledge_on_stop })))
    }),
    route("PATCH", "/balloon/hinting/stop", |api, _| done(api.remote.ask(Order::Hint(Hint::Stop)))),
    route("PATCH", "/balloon/reporting/pause", |api, _| done(api.remote.ask(Order::PauseReporting(true)))),
    route("PATCH", "/balloon/reporting/resume", |api, _| done(api.remote.ask(Order::PauseReporting(false)))),
    route("GET", "/balloon/reporting/status", |api, _| {
        there(balloon(api, "reporting")?, "free page reporting is off (free_page_reporting)")
    }),
    route("GET", "/balloon/hinting/status", |api, _| {
        there(balloon(api, "hinting")?, "free page hinting is off (free_page_hinting)")
    }),
];

/// Endpoints of Firecracker's that are refused by name.
pub const LATER: &[&str] = &["/hotplug", "/snapshot/load"];

const fn route(method: &'static str, path: &'static str, run: fn(&Api, &Call<'_>) -> Outcome) -> Route {
    Route { method, path, run }
}

impl Api {
    /// The API of the VM `id`, whose requests are counted among the rest.
    pub fn new(remote: Remote, metadata: Arc<Store>, metrics: Arc<Metrics>, id: String, version: &'static str) -> Self {
        let names = ROUTES.iter().map(|route| format!("{} {}", route.method, route.path));
        let asked = names.chain([UNKNOWN.to_owned()]).map(|name| metrics.endpoint(&name)).collect();
        Self { remote, metadata, metrics, id, version, asked }
    }

    /// Carries a request out.
    pub fn serve(&self, request: &Request, client: &UnixStream) -> Response {
        let begun = Instant::now();
        let source = format!("{} {}", request.method, request.path);
        let found = ROUTES.iter().enumerate().find_map(|(place, route)| {
            let name = fits(route.path, &request.path).filter(|_| route.method == request.method)?;
            Some((place, route, name))
        });
        if is_deprecated(request) {
            self.metrics.deprecated.deprecated_http_api_calls.fetch_add(1, Ordering::Relaxed);
        }
        let (place, outcome) = match found {
            Some((place, route, name)) => {
                let upgrade = request.upgrade.as_deref();
                (place, (route.run)(self, &Call { source, name, body: &request.body, upgrade, client }))
            }
            None => (ROUTES.len(), Err(unknown(&source, &request.path).into())),
        };
        if let Some(asked) = self.asked.get(place) {
            asked.asked(outcome.is_ok(), begun.elapsed());
        }
        match outcome {
            Ok(Told::Nothing) => Response::done(),
            Ok(Told::Json(value)) => Response::json(&value),
            Ok(Told::Text(kind, text)) => Response::text(kind, text),
            Ok(Told::Events) => Response::stream(),
            Ok(Told::HandedOver) => Response::leave(),
            Err(fault) => Response::fault(fault.status, &fault.text),
        }
    }
}

/// What is there, or the reason why nothing is.
fn there(value: Value, why_not: &str) -> Outcome {
    if value.is_null() { Err(why_not.into()) } else { Ok(Told::Json(value)) }
}

/// What the VM has to tell.
fn told(api: &Api, order: Order) -> Outcome {
    match api.remote.ask(order).map_err(text)? {
        Answer::Told(told) => Ok(Told::Json(told)),
        _ => Err("the VM does not tell".into()),
    }
}

/// What the balloon of a VM that is started has to tell under this name.
fn balloon(api: &Api, name: &str) -> Result<Value, String> {
    match api.remote.ask(Order::Inspect { id: "balloon".into() }).map_err(text)? {
        Answer::Told(mut told) => Ok(told[name].take()),
        _ => Ok(Value::Null),
    }
}

/// Whether a path is of this form, and the name in it.
fn fits<'a>(form: &str, path: &'a str) -> Option<&'a str> {
    match form.split_once('{') {
        Some((before, _)) => path.strip_prefix(before).filter(|name| !name.is_empty() && !name.contains('/')),
        None => (form == path).then_some(""),
    }
}

fn unknown(source: &str, path: &str) -> String {
    let later = |form: &&&str| path.strip_prefix(**form).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if let Some(form) = LATER.iter().find(later) {
        return format!("{form} (Firecracker's) is not in this version of vmm");
    }
    let methods: Vec<_> =
        ROUTES.iter().filter(|route| fits(route.path, path).is_some()).map(|route| route.method).collect();
    match methods.is_empty() {
        true => format!("Invalid request method and/or path: {source}."),
        false => format!("Invalid request method and/or path: {source}. Known here: {}.", methods.join(", ")),
    }
}

impl Call<'_> {
    /// The body.
    fn json(&self) -> Result<Value, String> {
        serde_json::from_slice(self.body).map_err(|error| format!("{}: the body is not JSON: {error}", self.source))
    }

    /// The body, which must be an object.
    fn object(&self) -> Result<Map<String, Value>, String> {
        if self.body.is_empty() {
            return Err(format!("{}: has no body; a JSON object is expected", self.source));
        }
        match self.json()? {
            Value::Object(object) => Ok(object),
            _ => Err(format!("{}: a JSON object is expected", self.source)),
        }
    }

    /// The body, without the name that it repeats.
    fn named(&self, key: &str) -> Result<Map<String, Value>, String> {
        let mut body = self.object()?;
        match body.remove(key) {
            Some(Value::String(name)) if name == self.name => Ok(body),
            Some(name) => Err(format!("{}: {key} is {name} in the body and `{}` in the path", self.source, self.name)),
            None => Err(format!("{}: {key} is missing in the body", self.source)),
        }
    }

    fn set(&self, api: &Api, path: JsonPath) -> Outcome {
        done(api.remote.configure(path, Value::Object(self.object()?), &self.source))
    }

    /// Changes of what is at `path` the keys that the body has.
    fn patch(&self, api: &Api, path: JsonPath) -> Outcome {
        let edits = Edit::patch(&path, &self.object()?, &self.source);
        done(api.remote.ask(Order::Configure(edits)))
    }

    fn set_named(&self, api: &Api, list: &str, key: &str) -> Outcome {
        let mut body = self.named(key)?;
        body.insert(key.into(), self.name.into());
        let path = JsonPath::keys([list]).join(Step::Where(key.into(), self.name.into()));
        done(api.remote.configure(path, Value::Object(body), &self.source))
    }

    fn update(&self, api: &Api, id: &str, patch: Map<String, Value>) -> Outcome {
        done(api.remote.ask(Order::Update { id: id.into(), patch, source: self.source.clone() }))
    }

    fn update_named(&self, api: &Api, list: &str, key: &str) -> Outcome {
        let patch = self.named(key)?;
        self.is_there(api, list, key)?;
        self.update(api, self.name, patch)
    }

    fn remove(&self, api: &Api, list: &str, key: &str) -> Outcome {
        self.is_there(api, list, key)?;
        done(api.remote.ask(Order::Remove { id: self.name.into() }))
    }

    /// Names are unique among all devices; this one must be of the right kind.
    fn is_there(&self, api: &Api, list: &str, key: &str) -> Result<(), String> {
        let (_, config) = describe(api)?;
        let mut there = config.get(list).and_then(Value::as_array).into_iter().flatten();
        match there.any(|device| device.get(key).and_then(Value::as_str) == Some(self.name)) {
            true => Ok(()),
            false => Err(format!("{}: there is no `{}` among {list}", self.source, self.name)),
        }
    }
}

fn text(error: impl ToString) -> String {
    error.to_string()
}

fn done(reply: Reply) -> Outcome {
    Ok(reply.map(|_| Told::Nothing).map_err(text)?)
}

fn describe(api: &Api) -> Result<(State, Value), String> {
    match api.remote.ask(Order::Describe).map_err(text)? {
        Answer::Described { state, json, .. } => Ok((state, json)),
        _ => Err("the VM does not say what it is".into()),
    }
}

#[cfg(test)]
mod tests;
