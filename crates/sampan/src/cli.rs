//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::options::Options;

#[derive(Parser)]
#[command(
    name = "sampan",
    version,
    about = "A whole cloud-native platform in one binary, speaking the Kubernetes API",
    after_help = "Start a cluster on this machine:\n  sampan server\nThen, in another terminal:\n  export KUBECONFIG=/var/lib/sampan/admin.kubeconfig\n  kubectl get nodes"
)]
pub struct Cli {
    /// What to log, such as info, debug or sampan_node=debug,info
    #[arg(
        long,
        global = true,
        env = "SAMPAN_LOG",
        default_value = "info",
        value_name = "FILTER"
    )]
    pub log: String,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run a cluster: API, store, scheduler, controllers, node, network and DNS in one process
    Server(Box<Server>),
    /// Run the scheduler alone, against any API server
    Scheduler(Alone),
    /// Run the controllers alone, against any API server
    Controllers(Controllers),
    /// Look after container images
    Image(Image),
    /// Apply manifests to a cluster, for machines without kubectl
    Apply(Apply),
    /// Write the whole state of a running cluster to a file
    Backup(Backup),
    /// Make the store of a stopped cluster what a backup holds
    Restore(Restore),
    /// Move a running cluster from the embedded store to etcd
    Migrate(Migrate),
}

/// Where etcd is.
#[derive(Args)]
pub struct Etcd {
    /// URLs of etcd, such as https://192.0.2.10:2379
    #[arg(long, env = "SAMPAN_ETCD_SERVERS", value_name = "URL,...", value_delimiter = ',')]
    pub etcd_servers: Vec<String>,
    /// The authority that etcd's certificates are checked against (PEM)
    #[arg(long, env = "SAMPAN_ETCD_CAFILE", value_name = "FILE")]
    pub etcd_cafile: Option<PathBuf>,
    /// The certificate that etcd knows us by (PEM)
    #[arg(long, env = "SAMPAN_ETCD_CERTFILE", value_name = "FILE")]
    pub etcd_certfile: Option<PathBuf>,
    /// The key of --etcd-certfile (PEM)
    #[arg(long, env = "SAMPAN_ETCD_KEYFILE", value_name = "FILE")]
    pub etcd_keyfile: Option<PathBuf>,
    /// Where in etcd the cluster's keys begin [default: /registry]
    #[arg(long, env = "SAMPAN_ETCD_PREFIX", value_name = "PATH")]
    pub etcd_prefix: Option<String>,
}

#[derive(Args)]
pub struct Backup {
    /// The file to write; it holds the cluster's Secrets
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// How to reach the cluster as an administrator
    #[arg(
        long,
        env = "KUBECONFIG",
        default_value = "/var/lib/sampan/admin.kubeconfig",
        value_name = "FILE"
    )]
    pub kubeconfig: PathBuf,
}

#[derive(Args)]
pub struct Restore {
    /// A file that `sampan backup` wrote
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
    /// The data directory of the stopped server, unless the store is etcd
    #[arg(long, env = "SAMPAN_DATA_DIR", default_value = crate::options::DEFAULT_DATA_DIR, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// Replace what is there (an old store in the data directory is kept beside the new one, what is in etcd is not)
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub etcd: Etcd,
}

#[derive(Args)]
pub struct Migrate {
    #[command(flatten)]
    pub etcd: Etcd,
    /// Replace what is in etcd below the prefix
    #[arg(long)]
    pub force: bool,
    /// How to reach the cluster as an administrator
    #[arg(
        long,
        env = "KUBECONFIG",
        default_value = "/var/lib/sampan/admin.kubeconfig",
        value_name = "FILE"
    )]
    pub kubeconfig: PathBuf,
}

#[derive(Args)]
pub struct Server {
    /// A YAML file with these options in camelCase; flags and environment beat it
    #[arg(long, env = "SAMPAN_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Remove what a server left on this machine (containers, mounts, network) and exit; its data stays
    #[arg(long)]
    pub cleanup: bool,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Args)]
pub struct Alone {
    /// How to reach the API server
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: PathBuf,
    /// Compete for a lease with others of this role, and act only while holding it
    #[arg(long)]
    pub leader_elect: bool,
}

#[derive(Args)]
pub struct Controllers {
    #[command(flatten)]
    pub alone: Alone,
    /// Which controllers run: *, a name, or -name; the last match counts
    #[arg(long, value_name = "NAME,...", value_delimiter = ',', default_value = "*")]
    pub controllers: Vec<String>,
    /// The PEM file of the authority to publish as kube-root-ca.crt [default: the kubeconfig's]
    #[arg(long, value_name = "FILE")]
    pub root_ca_file: Option<PathBuf>,
    /// The authority (PEM) that approved certificate requests are signed with; without it they are not
    #[arg(long, value_name = "FILE", requires = "cluster_signing_key_file")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// The key of --cluster-signing-cert-file (PEM)
    #[arg(long, value_name = "FILE", requires = "cluster_signing_cert_file")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// Nodes get their Pod ranges from here
    #[arg(long, value_name = "CIDR")]
    pub cluster_cidr: Option<ipnet::IpNet>,
}

#[derive(Args)]
pub struct Image {
    /// The server's data directory
    #[arg(long, global = true, env = "SAMPAN_DATA_DIR", default_value = crate::options::DEFAULT_DATA_DIR, value_name = "DIR")]
    pub data_dir: PathBuf,
    #[command(subcommand)]
    pub command: ImageCommand,
}

#[derive(Subcommand)]
pub enum ImageCommand {
    /// Take in images from OCI or docker archives, or OCI layout directories
    Import {
        /// Archives (plain, gzip or zstd) or directories
        #[arg(required = true, value_name = "PATH")]
        paths: Vec<PathBuf>,
        /// A name for the image, instead of those in the archive
        #[arg(long, value_name = "NAME")]
        name: Option<String>,
    },
    /// List images
    List {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
    /// Fetch an image from its registry
    Pull {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
        /// USER:PASSWORD for the registry; better given by the environment
        #[arg(
            long,
            env = "SAMPAN_REGISTRY_CREDENTIALS",
            value_name = "USER:PASSWORD",
            hide_env_values = true
        )]
        credentials: Option<String>,
        /// Registries (host or host:port) that may be spoken to without TLS
        #[arg(
            long,
            env = "SAMPAN_INSECURE_REGISTRIES",
            value_name = "HOST,...",
            value_delimiter = ','
        )]
        insecure_registries: Vec<String>,
        /// A PEM file of a certificate authority to trust besides the system's
        #[arg(long, value_name = "FILE")]
        ca_file: Vec<PathBuf>,
    },
    /// Remove images
    Remove {
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
}

#[derive(Args)]
pub struct Apply {
    /// Files with manifests; - reads standard input
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    pub filenames: Vec<PathBuf>,
    /// How to reach the cluster
    #[arg(
        long,
        env = "KUBECONFIG",
        default_value = "/var/lib/sampan/admin.kubeconfig",
        value_name = "FILE"
    )]
    pub kubeconfig: PathBuf,
}
