//! `fathom`, the command-line tool.

fn main() -> std::process::ExitCode {
    fathom::cli::main()
}
