//! What both clients show of themselves and demand of brokers: TLS and SASL. Files are read here, once; nothing shows a
//! password.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rsasl::prelude::SASLError;
use rskafka::client as rskafka_client;
use rustls::{
    ClientConfig, RootCertStore,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};

use super::{
    config::{Mechanism, Sasl, Tls},
    login::Login,
};

#[derive(Debug, thiserror::Error)]
pub enum SecurityError {
    #[error("{} cannot be read: {reason}", path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("{} holds no PEM certificate", path.display())]
    NoCertificate { path: PathBuf },
    #[error("{} holds no PEM private key", path.display())]
    NoKey { path: PathBuf },
    #[error("{} is empty, and should hold the password", path.display())]
    NoPassword { path: PathBuf },
    #[error("kafka.tls.cert_file and kafka.tls.key_file are needed together")]
    HalfAnIdentity,
    #[error("this machine trusts no certificate authority; name one in kafka.tls.ca_file")]
    NoRoots,
    #[error("the certificates do not fit together")]
    Tls(#[from] rustls::Error),
    #[error("the user name or the password cannot be sent with this mechanism")]
    Sasl(#[from] SASLError),
}

/// TLS and SASL as [`Tls`] and [`Sasl`] ask for them.
#[derive(Clone, Default)]
pub struct Security {
    tls: Option<Arc<ClientConfig>>,
    sasl: Option<Login>,
}

impl Security {
    /// Reads the files. It blocks.
    pub fn load(tls: Option<&Tls>, sasl: Option<&Sasl>) -> Result<Self, SecurityError> {
        Ok(Self { tls: tls.map(client_config).transpose()?, sasl: sasl.map(read_login).transpose()? })
    }

    /// For connections: `None` is plain TCP.
    pub(super) fn tls(&self) -> Option<&Arc<ClientConfig>> {
        self.tls.as_ref()
    }

    pub(super) fn login(&self) -> Option<&Login> {
        self.sasl.as_ref()
    }

    /// A login that takes long.
    pub(super) fn slow_login(&self) -> Option<&Login> {
        self.login().filter(|login| login.hashes())
    }

    /// The same for the client that produces and fetches.
    pub(super) fn apply_to(&self, mut builder: rskafka_client::ClientBuilder) -> rskafka_client::ClientBuilder {
        if let Some(tls) = &self.tls {
            builder = builder.tls_config(tls.clone());
        }
        if let Some(login) = &self.sasl {
            let credentials = rskafka_client::Credentials::new(login.username.clone(), login.password.clone());
            builder = builder.sasl_config(match login.mechanism {
                Mechanism::Plain => rskafka_client::SaslConfig::Plain(credentials),
                Mechanism::ScramSha256 => rskafka_client::SaslConfig::ScramSha256(credentials),
                Mechanism::ScramSha512 => rskafka_client::SaslConfig::ScramSha512(credentials),
            });
        }
        builder
    }
}

impl fmt::Debug for Security {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Security")
            .field("tls", &self.tls.is_some())
            .field("sasl", &self.sasl.as_ref().map(|login| login.mechanism))
            .finish()
    }
}

fn read_login(sasl: &Sasl) -> Result<Login, SecurityError> {
    let path = &sasl.password_file;
    let text = std::fs::read_to_string(path).map_err(|error| unreadable(path, &error))?;
    let password = text.trim();
    if password.is_empty() {
        return Err(SecurityError::NoPassword { path: path.clone() });
    }
    let login = Login::new(sasl.mechanism, sasl.username.clone(), password.to_owned());
    login.begin()?;
    Ok(login)
}

fn client_config(tls: &Tls) -> Result<Arc<ClientConfig>, SecurityError> {
    let mut roots = RootCertStore::empty();
    match &tls.ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                roots.add(certificate)?;
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(SecurityError::NoRoots);
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots);
    let config = match (&tls.cert_file, &tls.key_file) {
        (Some(chain), Some(key)) => builder.with_client_auth_cert(certificates(chain)?, private_key(key)?)?,
        (None, None) => builder.with_no_client_auth(),
        _ => return Err(SecurityError::HalfAnIdentity),
    };
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, SecurityError> {
    let found: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) | Err(pem::Error::NoItemsFound) => Err(SecurityError::NoCertificate { path: path.into() }),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, SecurityError> {
    match PrivateKeyDer::from_pem_file(path) {
        Ok(key) => Ok(key),
        Err(pem::Error::NoItemsFound) => Err(SecurityError::NoKey { path: path.into() }),
        Err(error) => Err(unreadable(path, &error)),
    }
}

fn unreadable(path: &Path, error: &dyn std::error::Error) -> SecurityError {
    SecurityError::Unreadable { path: path.into(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sasl(dir: &tempfile::TempDir, password: &str) -> Sasl {
        let password_file = dir.path().join("password");
        std::fs::write(&password_file, password).expect("the directory is writable");
        Sasl { mechanism: Mechanism::ScramSha512, username: "admin".into(), password_file }
    }

    #[test]
    fn password_is_shown_by_nothing() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let security = Security::load(None, Some(&sasl(&dir, "hunter2\n"))).expect("the password is there");
        assert_eq!(security.login().expect("it logs in").password, "hunter2");
        assert!(!format!("{security:?}").contains("hunter2"));
    }

    #[test]
    fn what_is_missing_is_named() {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "").expect("the directory is writable");
        let absent = dir.path().join("absent.pem");
        let check = |tls: Tls, expected: &str| {
            let error = Security::load(Some(&tls), None).expect_err(expected).to_string();
            assert!(error.contains(expected), "{error}");
        };
        check(Tls { ca_file: Some(absent), ..Tls::default() }, "absent.pem cannot be read");
        check(Tls { ca_file: Some(empty), ..Tls::default() }, "empty.pem holds no PEM certificate");
        let error = Security::load(None, Some(&sasl(&dir, " \n"))).expect_err("there is no password");
        assert!(matches!(error, SecurityError::NoPassword { .. }), "{error}");
    }
}
