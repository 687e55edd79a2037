//! Generates the stubs from the contract of this clone, with protox: no protoc is needed.

use std::{env, fs, path::PathBuf};

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let contract = PathBuf::from("../../proto");
    let mut files: Vec<PathBuf> = fs::read_dir(contract.join("cadenza/v1"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    files.sort();
    println!("cargo:rerun-if-changed={}", contract.display());
    let descriptors = protox::compile(&files, [&contract])?;
    tonic_prost_build::configure().build_server(false).compile_fds(descriptors)?;
    // For tools that want messages as JSON; with the details of refusals.
    files.push("../googleapis/google/rpc/error_details.proto".into());
    let all = protox::compile(&files, ["../../proto", "../googleapis"])?;
    fs::write(PathBuf::from(env::var("OUT_DIR")?).join("descriptors.bin"), all.encode_to_vec())?;
    Ok(())
}
