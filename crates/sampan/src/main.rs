//! The binary: command line, configuration, and the wiring of roles. Nothing else lives here.

mod access;
mod agent;
mod alone;
mod apply;
mod backup;
mod cert;
mod cli;
mod cloud;
mod component;
mod facts;
mod image;
mod keyring;
mod machine;
mod options;
mod print;
mod server;
mod token;
mod tuning;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;

use cli::{Cli, Command};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // A shim is this program again, before anything of the server exists in it.
    let mut arguments = std::env::args_os().skip(1);
    if arguments.next().is_some_and(|argument| argument == "shim") {
        return sampan_runtime::shim_main(arguments);
    }
    // What is private says so itself. What is not (the files that containers see as theirs) must not depend on who starts
    // this.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let cli = Cli::parse();
    start_logging(&cli.log);
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a cryptography provider was installed already");
    }
    if matches!(cli.command, Command::Server(_) | Command::Agent(_)) {
        // Small and scattered allocations gain nothing from huge pages and would triple what an idle server holds.
        // Containers get them back: see the runtime's init.
        if let Err(error) = nix::sys::prctl::set_thp_disable(true) {
            tracing::debug!(%error, "huge pages stay on");
        }
    }
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error),
    };
    runtime.block_on(async {
        let outcome: Result<(), Box<dyn std::error::Error>> = match cli.command {
            Command::Image(command) => image::run(command).await,
            Command::Apply(command) => apply::run(command).await,
            Command::Backup(command) => backup::backup(command).await,
            Command::Restore(command) => backup::restore(command).await,
            Command::Migrate(command) => backup::migrate(command).await,
            Command::Server(command) => serve(*command).await,
            Command::Agent(command) => agent::run(*command).await,
            Command::Token(command) => token::run(command).await,
            Command::Cert(command) => match cert::run(command).await {
                Ok(true) => Ok(()),
                Ok(false) => return ExitCode::FAILURE,
                Err(error) => Err(error),
            },
            Command::Scheduler(command) => alone::scheduler(*command).await,
            Command::Controllers(command) => alone::controllers(*command).await,
        };
        match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(&*error),
        }
    })
}

async fn serve(command: cli::Server) -> Result<(), Box<dyn std::error::Error>> {
    let file = match &command.config {
        Some(path) => options::Options::read(path)?,
        None => options::Options::default(),
    };
    let settings = command.options.over(file).settle(&options::Machine::here())?;
    if command.cleanup {
        machine::cleanup(&settings).await
    } else {
        server::run(settings).await
    }
}

fn fail(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("error: {error}");
    ExitCode::FAILURE
}

/// Libraries that log, at their highest levels, what is sent through them: Secrets in `kubectl exec`, for one. Whatever
/// the filter says they do not.
const QUIET: [&str; 2] = ["tungstenite=info", "tokio_tungstenite=info"];

fn start_logging(filter: &str) {
    let filter = match tracing_subscriber::EnvFilter::try_new(filter) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("warning: the log filter {filter:?} is not valid ({error}); logging at info");
            tracing_subscriber::EnvFilter::new("info")
        }
    };
    let filter = QUIET
        .iter()
        .filter_map(|directive| directive.parse().ok())
        .fold(filter, tracing_subscriber::EnvFilter::add_directive);
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // Colours are for people: a file or a journal gets plain text.
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(true)
        .init();
}
