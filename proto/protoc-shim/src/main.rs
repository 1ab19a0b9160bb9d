//! The part of protoc that prost-build uses, on the pure-Rust compiler `protox`.
//!
//! Not a protoc: no plugins, no code generation; it only writes descriptor sets. Our own `.proto` files do not
//! need it (see `proto/build.rs`), the build script of `etcd-client` does.

use std::path::PathBuf;
use std::process::ExitCode;

use prost::Message as _;

#[derive(Default)]
struct Args {
    includes: Vec<PathBuf>,
    output: Option<PathBuf>,
    files: Vec<PathBuf>,
    imports: bool,
    source_info: bool,
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if args.iter().any(|a| a == "--version") {
        println!("libprotoc 27.0 (protox)");
        return ExitCode::SUCCESS;
    }
    match parse(args).and_then(compile) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("protoc-shim: {message}");
            ExitCode::FAILURE
        }
    }
}

fn parse(args: Vec<String>) -> Result<Args, String> {
    let mut parsed = Args::default();
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().ok_or(format!("{arg} wants a value"));
        match arg.as_str() {
            "-I" | "--proto_path" => parsed.includes.push(value()?.into()),
            "-o" | "--descriptor_set_out" => parsed.output = Some(value()?.into()),
            "--include_imports" => parsed.imports = true,
            "--include_source_info" => parsed.source_info = true,
            "--experimental_allow_proto3_optional" => {}
            _ => match (arg.strip_prefix("-I"), arg.strip_prefix("-o")) {
                (Some(path), _) => parsed.includes.push(path.into()),
                (_, Some(path)) => parsed.output = Some(path.into()),
                _ if arg.starts_with('-') => return Err(format!("unknown option {arg}")),
                _ => parsed.files.push(arg.into()),
            },
        }
    }
    if parsed.includes.is_empty() {
        parsed.includes.push(".".into());
    }
    Ok(parsed)
}

fn compile(args: Args) -> Result<(), String> {
    let output = args.output.ok_or("-o is missing")?;
    let mut compiler = protox::Compiler::new(&args.includes).map_err(|e| e.to_string())?;
    compiler.include_imports(args.imports).include_source_info(args.source_info);
    compiler.open_files(&args.files).map_err(|e| e.to_string())?;
    let bytes = compiler.file_descriptor_set().encode_to_vec();
    std::fs::write(&output, bytes).map_err(|e| format!("{}: {e}", output.display()))
}
