//! Developer commands: what a person working on Sampan runs that a user never needs.
//!
//! `cargo xtask --help` lists them.

mod conformance;
mod gen_schema;
mod images;
mod test;
mod tools;
mod up;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "xtask", about = "Developer commands of Sampan")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build Sampan, start a cluster on this machine, run the example application.
    Up(up::Args),
    /// Run all tests.
    Test(test::Args),
    /// Run the public conformance suite against clusters, and time it.
    Conformance(conformance::Args),
    /// Rewrite the table of built-in definitions from the sources of k8s-openapi and k8s-pb.
    GenSchema(gen_schema::Args),
    /// Put the example's images together from Debian's packages.
    Images(images::Args),
}

fn main() -> std::process::ExitCode {
    let result: Result<(), Box<dyn std::error::Error>> = match Cli::parse().command {
        Command::GenSchema(args) => gen_schema::run(&args).map_err(Into::into),
        Command::Conformance(args) => conformance::run(&args),
        Command::Images(args) => images::run(&args),
        Command::Up(args) => up::up(&args),
        Command::Test(args) => test::test(&args),
    };
    match result {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
