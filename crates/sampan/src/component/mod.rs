//! The own port of a role that runs alone: whether it is well, what it counts, how it is configured.
//!
//! As upstream's components have it: HTTPS with a certificate that is made at the start unless one is given, health for
//! everybody, the rest for those whom the API server knows and lets ([`access`]). Without a certificate of its own it
//! proves nothing to clients but that nobody listens in.

mod access;
mod server;
#[cfg(test)]
mod tests;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use sampan_pki::Identity;
use sampan_pki::tls::{self, ClientVerifier};
use sampan_tasks::Tasks;
use serde_json::Value;
use tokio::net::TcpListener;

use access::Access;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Where a role listens, and whom it believes.
#[derive(clap::Args)]
pub struct SecurePort {
    /// The address of the role's own port
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub bind_address: IpAddr,
    /// The role's own port, for its health and metrics; 0: none [default: upstream's of this role]
    #[arg(long, value_name = "PORT")]
    pub secure_port: Option<u16>,
    /// The certificate of that port (PEM, with its chain); without it one is made at the start
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// The key of --tls-cert-file (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// The authority whose client certificates are believed (PEM) [default: as the API server says]
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
}

/// Something that may be amiss.
pub struct Check {
    pub name: &'static str,
    /// Whether it matters to `/readyz` alone.
    pub only_ready: bool,
    pub well: Box<dyn Fn() -> bool + Send + Sync>,
}

/// What a role tells about itself.
pub struct Component {
    pub name: &'static str,
    pub checks: Vec<Check>,
    pub metrics: Box<dyn Fn() -> String + Send + Sync>,
    /// By upstream's name of the configuration.
    pub configuration: (&'static str, Value),
}

/// A certificate nobody vouches for.
fn self_signed(name: &str) -> Result<Identity> {
    let mut names = vec![name.to_owned(), "localhost".to_owned()];
    names.push(crate::options::Machine::here().host_name);
    let made = rcgen::generate_simple_self_signed(names)?;
    Ok(Identity::parse(made.cert.pem(), made.signing_key.serialize_pem())?)
}

impl SecurePort {
    /// Serves until the tasks drain. Returns the address, if it is to be served at all.
    pub async fn serve(
        &self,
        usual: u16,
        component: Component,
        client: kube::Client,
        tasks: &Tasks,
    ) -> Result<Option<SocketAddr>> {
        let port = self.secure_port.unwrap_or(usual);
        if port == 0 {
            return Ok(None);
        }
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
        };
        let identity = match (&self.tls_cert_file, &self.tls_private_key_file) {
            (Some(certificate), Some(key)) => Identity::parse(read(certificate)?, read(key)?)?,
            _ => self_signed(component.name)?,
        };
        let verifier = match &self.client_ca_file {
            Some(path) => ClientVerifier::of_bundle(read(path)?.as_bytes())?,
            None => {
                // Nobody is believed until the API server has said who is.
                let nobody = self_signed("nobody")?;
                let verifier = ClientVerifier::of_authorities(&nobody.chain())?;
                access::follow_authority(client.clone(), verifier.clone(), tasks);
                verifier
            }
        };
        let config = tls::server_config(&identity, &verifier)?;
        let at = SocketAddr::new(self.bind_address, port);
        let listener = TcpListener::bind(at).await.map_err(|error| {
            format!("cannot listen on {at}: {error}; --secure-port says another port, or 0 for none")
        })?;
        let address = listener.local_addr()?;
        let access = Access::new(client, verifier);
        tracing::info!(%address, role = component.name, "serving health and metrics");
        server::start(Arc::new(server::Server { component, access }), listener, config, tasks);
        Ok(Some(address))
    }
}
