//! The reference in docs/manifest.md keeps up with the code.
#![allow(clippy::unwrap_used)]

mod common;
use common::Case;
use std::collections::BTreeSet;
use std::path::Path;

fn codes(text: &str, quote: char) -> BTreeSet<String> {
    let words = text.split(quote).filter(|word| word.starts_with("E_") || word.starts_with("W_"));
    words
        .filter(|word| word.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_'))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_code_has_a_line() {
    let crate_root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let directories = [crate_root.join("src"), crate_root.join("src/kubernetes")];
    let sources = directories.iter().flat_map(|directory| std::fs::read_dir(directory).unwrap()).map(|file| file.unwrap().path());
    let used: BTreeSet<String> =
        sources.filter(|path| path.is_file()).flat_map(|path| codes(&std::fs::read_to_string(path).unwrap(), '"')).collect();
    let reference = std::fs::read_to_string(crate_root.join("../docs/manifest.md")).unwrap();
    let mut documented = codes(&reference, '`');
    // The original's, named to say that it is gone.
    documented.remove("E_MANIFEST");
    assert!(used.len() > 80);
    assert_eq!(used, documented);
}

#[test]
fn the_first_example_of_the_reference_is_valid() {
    let reference = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/manifest.md")).unwrap();
    let example = reference.split("```yaml\n").nth(1).unwrap().split("```").next().unwrap();
    let case = Case::new(example).with("prepare.py", "").with("simulate.py", "").with("summarise.py", "");
    assert!(case.load().diagnostics.is_empty(), "{:#?}", case.load().diagnostics);
    assert_eq!(case.manifest().tasks.len(), 3);
}

#[test]
fn every_key_of_a_kubernetes_target_and_of_a_component_is_named() {
    let reference = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/manifest.md")).unwrap();
    let keys = scalable_manifest::kubernetes_keys();
    // What lies deeper is shown in the line of its section, or is Kubernetes' own.
    let sections = keys.iter().filter_map(|key| key.strip_prefix("targets.").or(key.strip_prefix("components.")));
    for key in sections.filter(|key| !key.contains('.')) {
        assert!(reference.contains(&format!("`{key}")), "docs/manifest.md does not name {key}");
    }
}
