//! Who asks: name and password from Docker's configuration, and the tokens that are given for them.
//!
//! Source: Docker Registry v2 authentication ("Token Authentication Specification", "OAuth2 Token Authentication");
//! `$DOCKER_CONFIG/config.json` or ~/.docker/config.json (`auths`, `credHelpers`, `credsStore`).

use std::sync::{Mutex, PoisonError};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use docker_credential::{CredentialRetrievalError, DockerCredential};
use serde::Deserialize;

use super::challenge::Challenge;
use super::http::{self, Answer, Client};
use super::{Access, resolve};
use crate::reference::{DEFAULT_REGISTRY, Name};
use crate::source::SourceError;

/// The default registry's name in Docker's configuration.
const DEFAULT_REGISTRY_KEY: &str = "https://index.docker.io/v1/";
/// As which program this one asks for tokens.
const CLIENT: &str = "vmm";
/// The user name with which helpers give a token instead of a password.
const TOKEN_USER: &str = "<token>";

/// Who asks one registry.
pub(super) struct Auth {
    registry: String,
    scope: String,
    /// Whether nothing is secret on the way anyhow.
    plain: bool,
    /// The header's value that was good last.
    current: Mutex<Option<String>>,
}

/// What a token service answers.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Auth {
    pub fn to(name: &Name, access: Access, plain: bool) -> Self {
        let actions = if access == Access::Pull { "pull" } else { "pull,push" };
        let scope = format!("repository:{}:{actions}", name.repository());
        Self { registry: name.registry().to_owned(), scope, plain, current: Mutex::new(None) }
    }

    /// What to send at first.
    pub fn current(&self) -> Option<String> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What to send after these challenges.
    pub fn renew(&self, client: &Client, challenges: &[String]) -> Result<String, SourceError> {
        let challenge = Challenge::of(challenges.iter().map(String::as_str));
        let found = self.credentials()?;
        let header = match challenge {
            None => return Err(SourceError::Refused("the registry wants a login of a kind that is not known".into())),
            Some(Challenge::Basic) => match found {
                Some(DockerCredential::UsernamePassword(user, password)) => basic(&user, &password),
                _ => return Err(self.nobody()),
            },
            Some(Challenge::Bearer { realm, service, scope }) => {
                self.check(&realm)?;
                let scope = scope.unwrap_or_else(|| self.scope.clone());
                format!("Bearer {}", token(client, &realm, service.as_deref(), &scope, found)?)
            }
        };
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = Some(header.clone());
        Ok(header)
    }

    /// Passwords do not leave TLS because a registry says so.
    fn check(&self, realm: &str) -> Result<(), SourceError> {
        if realm.starts_with("https://") || self.plain && realm.starts_with("http://") {
            return Ok(());
        }
        let realm: String = realm.chars().take(100).collect();
        Err(SourceError::Refused(format!("the registry wants tokens to be fetched without TLS, at {realm}")))
    }

    fn nobody(&self) -> SourceError {
        let host = &self.registry;
        SourceError::Refused(format!(
            "the registry wants a login, and there is none for {host} (`docker login {host}`)"
        ))
    }

    /// What Docker's configuration has for this registry.
    fn credentials(&self) -> Result<Option<DockerCredential>, SourceError> {
        let host = &self.registry;
        let keys = match host.as_str() {
            DEFAULT_REGISTRY => vec![DEFAULT_REGISTRY_KEY.to_owned(), host.clone()],
            _ => vec![
                host.clone(),
                format!("https://{host}"),
                format!("https://{host}/v1/"),
                format!("https://{host}/v2/"),
            ],
        };
        for key in keys {
            match docker_credential::get_credential(&key) {
                Ok(DockerCredential::UsernamePassword(user, token)) if user == TOKEN_USER => {
                    return Ok(Some(DockerCredential::IdentityToken(token)));
                }
                Ok(found) => return Ok(Some(found)),
                Err(CredentialRetrievalError::NoCredentialConfigured | CredentialRetrievalError::ConfigNotFound) => {}
                // The file is not there, or not for us; helpers say so when they know nothing.
                Err(CredentialRetrievalError::ConfigReadError) if !config_is_there() => {}
                Err(CredentialRetrievalError::HelperFailure { stdout, .. }) if stdout.contains("not found") => {}
                Err(error) => {
                    let why = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
                    return Err(SourceError::Refused(format!("Docker's config.json, for {key}: {why}")));
                }
            }
        }
        Ok(None)
    }
}

fn config_is_there() -> bool {
    let directory = std::env::var_os("DOCKER_CONFIG").map(std::path::PathBuf::from);
    let directory =
        directory.or_else(|| std::env::var_os("HOME").map(|home| std::path::Path::new(&home).join(".docker")));
    directory.is_some_and(|directory| directory.join("config.json").exists())
}

fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// A token from whom the registry trusts.
fn token(
    client: &Client,
    realm: &str,
    service: Option<&str>,
    scope: &str,
    found: Option<DockerCredential>,
) -> Result<String, SourceError> {
    let answer = match found {
        Some(DockerCredential::IdentityToken(token)) => {
            let service = service.unwrap_or_default();
            let form = [
                ("grant_type", "refresh_token"),
                ("refresh_token", &token),
                ("service", service),
                ("scope", scope),
                ("client_id", CLIENT),
            ];
            client.agent().post(realm).send_form(form)
        }
        found => {
            let mut request = client.agent().get(realm).query("scope", scope).query("client_id", CLIENT);
            if let Some(service) = service {
                request = request.query("service", service);
            }
            if let Some(DockerCredential::UsernamePassword(user, password)) = found {
                request = request.query("account", &user).header("authorization", basic(&user, &password));
            }
            request.call()
        }
    };
    let answer: Answer = http::good(answer.map_err(|error| client.fault(error))?, "a token")?;
    let bytes = resolve::read_document(answer.into_body().into_reader()).map_err(|error| super::broken(&error))??;
    let odd = || SourceError::Refused("the registry's token service gives no token".into());
    let token: Token = serde_json::from_slice(&bytes).map_err(|_| odd())?;
    let token = token.token.or(token.access_token).filter(|token| !token.is_empty()).ok_or_else(odd)?;
    // It becomes a header.
    if token.bytes().all(|byte| byte.is_ascii_graphic()) { Ok(token) } else { Err(odd()) }
}
