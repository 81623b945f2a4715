//! Requests: TLS, time limits, and what each status of an answer means.
//!
//! ureq blocks the thread that asks, which is what layers side by side need; TLS is rustls with ring. Trusted are the
//! host's authorities (`SSL_CERT_FILE`, `SSL_CERT_DIR` or where the distribution has them) and those of `--ca-file`.

use std::io::{self, Read};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ureq::http::{Response, StatusCode, header};
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body};

use super::Options;
use crate::reference::DEFAULT_REGISTRY;
use crate::source::SourceError;

/// Where the default registry's protocol is spoken.
const DEFAULT_REGISTRY_HOST: &str = "registry-1.docker.io";
/// For a name's address, a connection, and an answer's head.
const CONNECT: Duration = Duration::from_secs(20);
const ANSWER: Duration = Duration::from_secs(60);
/// For the next bytes of a body, either way.
const STALL: Duration = Duration::from_secs(30);
/// Most redirects of one request.
const REDIRECTS: u32 = 5;
/// Longest text of an error that is looked at, bytes, and shown, characters.
const ERROR_MAX: u64 = 64 << 10;
const SHOWN_MAX: usize = 200;

/// An answer whose status has not been looked at.
pub(super) type Answer = Response<Body>;

/// Speaks to one registry.
#[derive(Debug)]
pub(super) struct Client {
    agent: Agent,
    base: String,
}

impl Client {
    /// To this host.
    pub fn to(registry: &str, options: &Options) -> Result<Self, SourceError> {
        let host = if registry == DEFAULT_REGISTRY { DEFAULT_REGISTRY_HOST } else { registry };
        let local = is_loopback(registry);
        let roots = roots(options.ca_file.as_deref(), local || options.plain_http)?;
        // It may lead to places with TLS, as those where tokens are given.
        let plain = || Self { agent: agent(roots.clone(), false), base: format!("http://{host}") };
        if options.plain_http {
            return Ok(plain());
        }
        let secure = Self { agent: agent(roots.clone(), true), base: format!("https://{host}") };
        Ok(if local && secure.speaks_no_tls() { plain() } else { secure })
    }

    /// Scheme and host.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Whether there is no TLS.
    pub fn is_plain(&self) -> bool {
        self.base.starts_with("http://")
    }

    /// Whether the other end answers, but not in TLS. A certificate that is not trusted is still one.
    fn speaks_no_tls(&self) -> bool {
        match self.agent.get(format!("{}/v2/", self.base)).call() {
            Err(ureq::Error::Rustls(error)) => !is_certificate(&error),
            Err(ureq::Error::Io(error)) => match rustls_error(&error) {
                Some(error) => !is_certificate(error),
                None => matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset),
            },
            _ => false,
        }
    }

    pub fn get(&self, url: &str, headers: &[(&str, &str)], authorization: Option<&str>) -> Result<Answer, SourceError> {
        let mut request = self.agent.get(url);
        for (name, value) in headers.iter().copied().chain(authorization.map(|value| ("authorization", value))) {
            request = request.header(name, value);
        }
        request.call().map_err(|error| self.fault(error))
    }

    /// For requests that are not GET.
    pub fn agent(&self) -> &Agent {
        &self.agent
    }

    /// What a request without an answer means.
    pub fn fault(&self, error: ureq::Error) -> SourceError {
        let host = self.base.split("://").nth(1).unwrap_or(&self.base);
        let passing = |why: String| SourceError::Passing { why: format!("{host}: {why}"), after: None };
        let refused = |why: String| SourceError::Refused(format!("{host}: {why}"));
        match error {
            ureq::Error::HostNotFound => refused("no such host".into()),
            ureq::Error::Rustls(error) => refused(tls(&error)),
            ureq::Error::RequireHttpsOnly(_) => refused("it leads to a place without TLS".into()),
            ureq::Error::Io(error) => match rustls_error(&error) {
                Some(error) => refused(tls(error)),
                None if error.kind() == io::ErrorKind::ConnectionRefused => refused("connection refused".into()),
                None if is_no_such_host(&error) => refused("no such host".into()),
                None => passing(error.to_string()),
            },
            ureq::Error::Timeout(what) => passing(format!("no answer in time ({what})")),
            error @ (ureq::Error::ConnectionFailed | ureq::Error::Protocol(_) | ureq::Error::BodyStalled) => {
                passing(error.to_string())
            }
            error => refused(error.to_string()),
        }
    }
}

/// An answer with what was asked for; else why not.
pub(super) fn good(answer: Answer, what: &str) -> Result<Answer, SourceError> {
    let status = answer.status();
    if status.is_success() {
        return Ok(answer);
    }
    let after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
    let text = told(answer);
    let why = |meaning: &str| {
        let text = if text.is_empty() { String::new() } else { format!(": {text}") };
        format!("{meaning} (HTTP {}){text}", status.as_u16())
    };
    Err(match status {
        StatusCode::UNAUTHORIZED => SourceError::Refused(why(
            "the registry wants a login, and has refused this one (`docker login` stores one)",
        )),
        StatusCode::FORBIDDEN => SourceError::Refused(why(&format!("the registry does not allow access to {what}"))),
        StatusCode::NOT_FOUND => SourceError::Refused(why(&format!("the registry does not have {what}"))),
        StatusCode::TOO_MANY_REQUESTS => SourceError::Passing {
            why: why("the registry has had too many requests"),
            after: after.map(Duration::from_secs),
        },
        StatusCode::REQUEST_TIMEOUT => SourceError::Passing { why: why("the registry was too slow"), after: None },
        status if status.is_server_error() => {
            SourceError::Passing { why: why("the registry has a fault"), after: after.map(Duration::from_secs) }
        }
        _ => SourceError::Refused(why("the registry answers what is not understood")),
    })
}

/// The registry's own words.
fn told(answer: Answer) -> String {
    let mut bytes = Vec::new();
    // What can not be read is not told.
    let _ = answer.into_body().into_reader().take(ERROR_MAX).read_to_end(&mut bytes);
    let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let text =
        |pointer: &str| json.pointer(pointer).and_then(serde_json::Value::as_str).filter(|text| !text.is_empty());
    let text = text("/errors/0/message").or_else(|| text("/errors/0/code")).or_else(|| text("/details"));
    text.unwrap_or_default().chars().take(SHOWN_MAX).collect()
}

fn tls(error: &rustls::Error) -> String {
    if is_certificate(error) {
        return format!("its certificate is not trusted: {error} (--ca-file names another authority)");
    }
    format!("no TLS connection: {error} (--plain-http does without)")
}

fn is_certificate(error: &rustls::Error) -> bool {
    matches!(error, rustls::Error::InvalidCertificate(_) | rustls::Error::NoCertificatesPresented)
}

/// rustls's errors travel as errors of reading.
fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// The C library's resolver has no kind of error for it; its text is in English in a static program.
fn is_no_such_host(error: &io::Error) -> bool {
    let text = error.to_string();
    ["Name or service not known", "No address associated with hostname"].iter().any(|known| text.contains(known))
}

/// What sends requests; perhaps only to places with TLS.
fn agent(roots: RootCerts, only_tls: bool) -> Agent {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider);
    let config = Agent::config_builder()
        .tls_config(tls.build())
        .http_status_as_error(false)
        .https_only(only_tls)
        .max_redirects(REDIRECTS)
        .user_agent(concat!("vmm/", env!("CARGO_PKG_VERSION")))
        .timeout_resolve(Some(CONNECT))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(ANSWER))
        .timeout_per_read(Some(STALL))
        .timeout_per_write(Some(STALL));
    config.build().new_agent()
}

/// The authorities that are trusted; there may be none where TLS may not be needed.
fn roots(ca_file: Option<&Path>, may_be_none: bool) -> Result<RootCerts, SourceError> {
    let host = rustls_native_certs::load_native_certs();
    let mut roots: Vec<_> = host.certs.iter().map(|one| Certificate::from_der(one).to_owned()).collect();
    if let Some(path) = ca_file {
        let pem = std::fs::read(path).map_err(|error| SourceError::io("read", path, error))?;
        let before = roots.len();
        for item in parse_pem(&pem) {
            let item = item.map_err(|error| SourceError::form(path, format!("this is no PEM: {error}")))?;
            if let PemItem::Certificate(one) = item {
                roots.push(one);
            }
        }
        if roots.len() == before {
            return Err(SourceError::form(path, "there is no certificate in it"));
        }
    }
    if roots.is_empty() && !may_be_none {
        let why = host.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        let cure = "install ca-certificates, or set SSL_CERT_FILE or --ca-file";
        return Err(SourceError::Refused(format!("no certificate authority is trusted here ({cure}){why}")));
    }
    Ok(RootCerts::Specific(Arc::new(roots)))
}

/// Whether a registry's name says that it is on this machine.
fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => host,
        _ => registry,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known_by_its_name() {
        for name in ["localhost", "localhost:5000", "127.0.0.1:1", "127.1.2.3", "[::1]:5000", "[::1]"] {
            assert!(is_loopback(name), "{name}");
        }
        for name in ["localhost.example", "10.0.0.1:5000", "[::2]:1", "127.example:5000", "docker.io"] {
            assert!(!is_loopback(name), "{name}");
        }
    }
}
