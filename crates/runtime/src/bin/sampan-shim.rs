//! The shim alone, for tests of this crate: what the whole binary does when its first argument is
//! `shim`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    match args.next() {
        Some(first) if first == "shim" => sampan_runtime::shim_main(args),
        _ => {
            eprintln!("usage: sampan-shim shim DIRECTORY");
            ExitCode::from(2)
        }
    }
}
