//! A broker that wants to know who asks.

use std::{
    net::TcpListener,
    path::PathBuf,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::{Kafka, Setup, fast_failover};

/// Who may do everything, beside whoever comes over the plain listener, and who may do only what is granted.
pub const ADMIN: (&str, &str) = ("admin", "admin-secret");
pub const USER: (&str, &str) = ("app", "app-secret");

/// Certificates of an authority of our own, made by `openssl`.
pub struct Certificates(TempDir);

impl Certificates {
    pub fn make() -> Self {
        let dir = tempfile::tempdir().expect("a directory can be made");
        let script = "
            set -e
            openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=test-ca -keyout ca.key -out ca.pem
            openssl req -x509 -newkey rsa:2048 -nodes -days 30 -subj /CN=other-ca -keyout other.key -out other.pem
            printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\nextendedKeyUsage=serverAuth,clientAuth\\n' >ext
            for who in broker client; do
                openssl req -newkey rsa:2048 -nodes -subj /CN=$who -keyout $who.key -out $who.csr
                openssl x509 -req -in $who.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 30 -extfile ext -out $who.crt
            done
            openssl x509 -req -in broker.csr -CA other.pem -CAkey other.key -CAcreateserial -days 30 -extfile ext -out by-other.crt
            cat broker.key broker.crt ca.pem >by-ca.pem
            cat broker.key by-other.crt other.pem >by-other.pem
            cp by-ca.pem broker.pem";
        let made = Command::new("sh").args(["-c", script]).current_dir(dir.path()).stdin(Stdio::null()).output();
        let made = made.expect("a shell runs");
        assert!(made.status.success(), "openssl fails: {}", String::from_utf8_lossy(&made.stderr));
        Self(dir)
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// Has the broker show, from its next start on, the certificate of this authority: `ca`, as at first, or `other`.
    pub fn present_by(&self, authority: &str) {
        let by = self.file(&format!("by-{authority}.pem"));
        std::fs::copy(by, self.file("broker.pem")).expect("the directory is ours");
    }

    /// A file that holds a password.
    pub fn secret(&self, password: &str) -> PathBuf {
        let path = self.file(password);
        std::fs::write(&path, password).expect("the directory is ours");
        path
    }
}

/// Where a guarded broker listens, beside the plain listener of all.
pub struct Guarded {
    /// Wants a login.
    pub sasl: String,
    pub tls: String,
    /// Wants a client's certificate.
    pub mutual: String,
    /// Wants a login, over TLS.
    pub both: String,
}

/// Starts one, with an authorizer of Kafka's own.
pub fn start(certificates: &Certificates) -> (Kafka, Guarded) {
    let ports = [(); 4].map(|()| {
        let listener = TcpListener::bind("127.0.0.1:0").expect("some port is free");
        listener.local_addr().expect("it is bound").port()
    });
    let kafka = Kafka::start_with(|place| {
        let mut setup = fast_failover();
        setup.properties.extend(properties(certificates, [place.port, place.controller_port], ports));
        Setup { format_args: ["256", "512"].into_iter().flat_map(scram_users).collect(), ..setup }
    });
    let [sasl, tls, mutual, both] = ports.map(|port| format!("127.0.0.1:{port}"));
    (kafka, Guarded { sasl, tls, mutual, both })
}

fn scram_users(bits: &str) -> Vec<String> {
    let user = |(name, password)| format!("SCRAM-SHA-{bits}=[name={name},password={password}]");
    [ADMIN, USER].into_iter().flat_map(|one| ["--add-scram".to_owned(), user(one)]).collect()
}

fn properties(certificates: &Certificates, [plain, controller]: [u16; 2], ports: [u16; 4]) -> Vec<String> {
    let [sasl, tls, mutual, both] = ports;
    let listeners = format!(
        "PLAINTEXT://127.0.0.1:{plain},SASL://127.0.0.1:{sasl},SSL://127.0.0.1:{tls},MUTUAL://127.0.0.1:{mutual},\
         SASLSSL://127.0.0.1:{both}"
    );
    let mut properties = vec![
        format!("listeners={listeners},CONTROLLER://127.0.0.1:{controller}"),
        format!("advertised.listeners={listeners}"),
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,SASL:SASL_PLAINTEXT,SSL:SSL,MUTUAL:SSL,SASLSSL:SASL_SSL,\
         CONTROLLER:PLAINTEXT"
            .to_owned(),
        "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512".to_owned(),
        "ssl.keystore.type=PEM".to_owned(),
        format!("ssl.keystore.location={}", certificates.file("broker.pem").display()),
        "ssl.truststore.type=PEM".to_owned(),
        format!("ssl.truststore.location={}", certificates.file("ca.pem").display()),
        "listener.name.mutual.ssl.client.auth=required".to_owned(),
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned(),
        format!("super.users=User:{};User:ANONYMOUS;User:CN=client", ADMIN.0),
        "allow.everyone.if.no.acl.found=false".to_owned(),
    ];
    for listener in ["sasl", "saslssl"] {
        for mechanism in ["scram-sha-256", "scram-sha-512"] {
            properties.push(format!(
                "listener.name.{listener}.{mechanism}.sasl.jaas.config=org.apache.kafka.common.security.scram.\
                 ScramLoginModule required;"
            ));
        }
        let users = [ADMIN, USER].map(|(name, password)| format!("user_{name}=\"{password}\""));
        properties.push(format!(
            "listener.name.{listener}.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule \
             required {};",
            users.join(" ")
        ));
    }
    properties
}
