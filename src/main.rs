//! The program `depotfs`: parse, run, exit code.

fn main() -> std::process::ExitCode {
    depotfs::cli::main(std::env::args_os())
}
