//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use crate::component::SecurePort;

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
    Scheduler(Box<Scheduler>),
    /// Run the controllers alone, against any API server
    Controllers(Box<Controllers>),
    /// Run this machine as a node of a cluster that another machine serves
    Agent(Box<Agent>),
    /// Make, list or delete the tokens by which machines join a cluster
    Token(Token),
    /// List and renew certificates, and replace what issues them
    Cert(Cert),
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

/// What a machine is told when it joins. The cluster's own settings it learns from the cluster.
#[derive(Args)]
pub struct Agent {
    /// The cluster's API, such as https://192.0.2.10:6443
    #[arg(long, env = "SAMPAN_SERVER", value_name = "URL")]
    pub server: Option<String>,
    /// A token of `sampan token create`; needed until the machine has joined
    #[arg(long, env = "SAMPAN_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub token: Option<crate::token::JoinToken>,
    /// A file that holds the token, where it should not be in the list of processes
    #[arg(long, env = "SAMPAN_TOKEN_FILE", value_name = "FILE", conflicts_with = "token")]
    pub token_file: Option<PathBuf>,
    /// A YAML file with the node's options in camelCase; flags and environment beat it
    #[arg(long, env = "SAMPAN_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Remove what the agent left on this machine (containers, mounts, network) and exit; its data stays
    #[arg(long)]
    pub cleanup: bool,
    #[command(flatten)]
    pub node: NodeOptions,
}

/// The options of a server that concern the machine it runs on.
#[derive(Args)]
pub struct NodeOptions {
    /// Where everything is kept: certificates, images, volumes
    #[arg(long, env = "SAMPAN_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// This machine's name in the cluster [default: the host name]
    #[arg(long, env = "SAMPAN_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,
    /// This machine's address for the rest of the cluster [default: the one that reaches the server]
    #[arg(long, env = "SAMPAN_NODE_IP", value_name = "ADDR")]
    pub node_ip: Option<std::net::IpAddr>,
    /// Port of the node's own server (logs, exec, metrics)
    #[arg(long, env = "SAMPAN_NODE_PORT", value_name = "PORT")]
    pub node_port: Option<u16>,
    /// Roles to leave out, separated by commas: proxy, dns
    #[arg(long, env = "SAMPAN_DISABLE", value_name = "ROLE,...", value_delimiter = ',')]
    pub disable: Option<Vec<crate::options::Role>>,
    /// Registries (host or host:port) that may be spoken to without TLS, separated by commas
    #[arg(
        long,
        env = "SAMPAN_INSECURE_REGISTRIES",
        value_name = "HOST,...",
        value_delimiter = ','
    )]
    pub insecure_registries: Option<Vec<String>>,
    /// Devices of this machine that Pods may ask for under a name, as example.com/tun=/dev/net/tun*10: for ten at a time;
    /// several files of one name are separated by commas, names by semicolons, and the option may be repeated
    #[arg(
        long = "device",
        env = "SAMPAN_DEVICES",
        value_name = "NAME=PATH[*COUNT],...",
        value_delimiter = ';'
    )]
    pub devices: Option<Vec<String>>,
    /// How little of a resource may be left before Pods are evicted and none are taken (see `sampan server --help`)
    #[arg(long, env = "SAMPAN_EVICTION_HARD", value_name = "SIGNAL<VALUE,...")]
    pub eviction_hard: Option<String>,
    /// Unused images are removed once their file system is fuller than this percentage; 100 keeps them [default: 85]
    #[arg(long, env = "SAMPAN_IMAGE_GC_HIGH_THRESHOLD", value_name = "PERCENT")]
    pub image_gc_high_threshold: Option<u8>,
    /// ... until it is this full [default: 80]
    #[arg(long, env = "SAMPAN_IMAGE_GC_LOW_THRESHOLD", value_name = "PERCENT")]
    pub image_gc_low_threshold: Option<u8>,
    #[command(flatten)]
    pub cloud: crate::cloud::Cloud,
    /// What to do with Pods and the Pod network when the agent is asked to stop
    #[arg(long, env = "SAMPAN_ON_EXIT", value_name = "WHAT")]
    pub on_exit: Option<crate::options::OnExit>,
}

#[derive(Args)]
pub struct Token {
    /// How to reach the cluster as an administrator
    #[arg(
        long,
        global = true,
        env = "KUBECONFIG",
        default_value = "/var/lib/sampan/admin.kubeconfig",
        value_name = "FILE"
    )]
    pub kubeconfig: PathBuf,
    #[command(subcommand)]
    pub command: TokenCommand,
}

#[derive(Subcommand)]
pub enum TokenCommand {
    /// Make a token, and print the command that joins a machine with it
    Create {
        /// How long it is good for, such as 30m, 24h or 7d; 0: for ever
        #[arg(long, default_value = "24h", value_name = "TIME", value_parser = crate::token::duration)]
        ttl: std::option::Option<jiff::SignedDuration>,
        /// What it is for
        #[arg(long, default_value = "", value_name = "TEXT")]
        description: String,
    },
    /// List the tokens there are, without their secrets
    List,
    /// Delete tokens; machines that have joined stay
    Delete {
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

#[derive(Args)]
pub struct Cert {
    /// The data directory of the server, or of an agent
    #[arg(long, global = true, env = "SAMPAN_DATA_DIR", default_value = crate::options::DEFAULT_DATA_DIR, value_name = "DIR")]
    pub data_dir: PathBuf,
    /// How to reach the running server as an administrator [default: admin.kubeconfig in the data directory]
    #[arg(long, global = true, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    #[command(subcommand)]
    pub command: CertCommand,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    Table,
    Json,
}

#[derive(Subcommand)]
pub enum CertCommand {
    /// List every certificate the data directory holds
    List {
        #[arg(short, long, default_value = "table", value_name = "FORMAT")]
        output: Output,
    },
    /// List the certificates that expire soon, and fail if there are any
    #[command(
        after_help = "A running server renews its certificates when between 70 and 90 % of their lives are over, so \
        none of a healthy server is found with the default. Authorities live ten years and are replaced with \
        `sampan cert rotate-ca`.\n\nExit codes: 0 nothing expires within the time, 1 something does or could not be read."
    )]
    Check {
        /// How soon, such as 12h or 30d
        #[arg(long, default_value = "30d", value_name = "TIME", value_parser = crate::token::duration)]
        within: std::option::Option<jiff::SignedDuration>,
        #[arg(short, long, default_value = "table", value_name = "FORMAT")]
        output: Output,
    },
    /// Make certificates anew before their time, such as after a key was seen by somebody
    #[command(
        after_help = "A running server uses the new ones at once; connections that are open stay open. admin.kubeconfig is \
        rewritten when `admin` is renewed. On a stopped server the files are replaced. Joined machines renew their own."
    )]
    Renew {
        /// As `sampan cert list` calls them
        #[arg(value_name = "NAME", conflicts_with = "all")]
        names: Vec<String>,
        /// Every certificate the server uses; authorities stay
        #[arg(long)]
        all: bool,
    },
    /// Tell how far replacements are, and who is behind
    Status {
        #[arg(short, long, default_value = "table", value_name = "FORMAT")]
        output: Output,
    },
    /// Replace the cluster's certificate authority, and the front proxy's, without an outage
    #[command(
        after_help = "Three phases, of which this command does two and waits for each to arrive everywhere:\n\n  \
        1. A next authority is made and trusted beside the one in use: by the server, by its nodes, in admin.kubeconfig,\n     \
        in the ConfigMap kube-root-ca.crt of every namespace, and by extension API servers.\n  \
        2. It issues: the server's certificates and those of the nodes are made anew. What knows only the old authority\n     \
        goes on working, in both directions.\n  \
        3. `sampan cert rotate-ca --retire`, when you are ready: the old authority is trusted no longer. Refused, with a\n     \
        list, while a node or a namespace still depends on it.\n\n\
        Interrupted at any point, by kill -9 too, the cluster works and the same command goes on where it was. On a stopped\n\
        server the steps are made in its store, and everybody follows when it starts.\n\
        Tokens of service accounts have nothing to do with it: they stay valid."
    )]
    RotateCa(Rotate),
    /// Replace the key that signs service-account tokens, without making one invalid
    #[command(
        after_help = "The next key is published (/openid/v1/jwks) before it signs, and the old one is believed until it is retired \
        with --retire. That is refused, with a list, while tokens it has signed are in use: those of Pods are renewed within a \
        day, those in Secrets when their data.token is deleted.\n\n\
        Others outside of the cluster may keep the published keys for an hour. Where there are such, begin with --only-trust and \
        go on an hour later."
    )]
    RotateServiceAccountKey(Rotate),
}

#[derive(Args)]
pub struct Rotate {
    /// Stop when the next one is trusted everywhere; a later call goes on
    #[arg(long, conflicts_with_all = ["retire", "cancel"])]
    pub only_trust: bool,
    /// Trust the old one no longer: the last step
    #[arg(long, conflicts_with = "cancel")]
    pub retire: bool,
    /// Forget the next one, as long as it has not begun to work
    #[arg(long)]
    pub cancel: bool,
    /// Wait for nobody, and cut off who still depends on the old one
    #[arg(long)]
    pub force: bool,
    /// How long to wait for everybody to follow; 0: for ever
    #[arg(long, default_value = "5m", value_name = "TIME", value_parser = crate::token::duration)]
    pub timeout: std::option::Option<jiff::SignedDuration>,
}

/// Who of several works. What is not said here is as the configuration file says, or upstream's.
#[derive(Args)]
pub struct LeaderElect {
    /// Compete for a lease with others of this role, and act only while holding it [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub leader_elect: Option<bool>,
    /// How long others wait after the last renewal they saw [default: 15s]
    #[arg(long, value_name = "DURATION")]
    pub leader_elect_lease_duration: Option<String>,
    /// How long one that leads works without having renewed [default: 10s]
    #[arg(long, value_name = "DURATION")]
    pub leader_elect_renew_deadline: Option<String>,
    /// Time between tries [default: 2s]
    #[arg(long, value_name = "DURATION")]
    pub leader_elect_retry_period: Option<String>,
    /// The lease's name [default: upstream's of this role]
    #[arg(long, value_name = "NAME")]
    pub leader_elect_resource_name: Option<String>,
    /// The lease's namespace [default: kube-system]
    #[arg(long, value_name = "NAME")]
    pub leader_elect_resource_namespace: Option<String>,
}

#[derive(Args)]
pub struct Scheduler {
    /// How to reach the API server [default: as --config says]
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
    /// Profiles, plugins, extenders and leader election (a KubeSchedulerConfiguration)
    #[arg(long, env = "SAMPAN_SCHEDULER_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub election: LeaderElect,
    #[command(flatten)]
    pub port: SecurePort,
}

#[derive(Args)]
pub struct Controllers {
    /// How to reach the API server
    #[arg(long, env = "KUBECONFIG", value_name = "FILE")]
    pub kubeconfig: PathBuf,
    #[command(flatten)]
    pub election: LeaderElect,
    #[command(flatten)]
    pub port: SecurePort,
    /// The PEM file of the authority to publish as kube-root-ca.crt [default: the kubeconfig's]
    #[arg(long, value_name = "FILE")]
    pub root_ca_file: Option<PathBuf>,
    /// The authority (PEM) that approved certificate requests are signed with; without it they are not
    #[arg(long, value_name = "FILE", requires = "cluster_signing_key_file")]
    pub cluster_signing_cert_file: Option<PathBuf>,
    /// The key of --cluster-signing-cert-file (PEM)
    #[arg(long, value_name = "FILE", requires = "cluster_signing_cert_file")]
    pub cluster_signing_key_file: Option<PathBuf>,
    /// Nodes get their Pod ranges from here: one, or one of each family
    #[arg(long, value_name = "CIDR,...", value_delimiter = ',')]
    pub cluster_cidr: Option<Vec<ipnet::IpNet>>,
    #[command(flatten)]
    pub tuning: crate::tuning::Tuning,
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
