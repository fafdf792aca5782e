//! One way to load a manifest in tests, so that a hundred cases do not touch the API.
#![allow(clippy::unwrap_used, dead_code)]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use scalable_manifest::*;

/// A directory with a manifest, and what `load` is told.
pub struct Case {
    pub dir: tempfile::TempDir,
    pub env: HashMap<String, String>,
    pub target: Option<String>,
    pub overlay: Option<String>,
    pub strict: bool,
    pub machine: Machine,
}

impl Case {
    pub fn new(yaml: &str) -> Case {
        Case::bytes(yaml.as_bytes())
    }

    pub fn bytes(yaml: &[u8]) -> Case {
        let dir = tempfile::Builder::new().prefix("study").tempdir().unwrap();
        std::fs::write(dir.path().join("scalable.yaml"), yaml).unwrap();
        let env = HashMap::from([("PATH".to_owned(), "/usr/bin:/bin".to_owned())]);
        let machine = Machine { milli_cpus: 4_000, memory_bytes: 10_000_000_000 };
        Case { dir, env, target: None, overlay: None, strict: false, machine }
    }

    pub fn example(name: &str) -> Case {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/examples").join(name);
        let case = Case::bytes(&std::fs::read(path).unwrap());
        for script in ["prepare.py", "simulate.py", "summarise.py"] {
            case.put(script, script);
        }
        // Whether this machine has Python is not what is tested.
        let python = case.put("bin/python3", "");
        std::fs::set_permissions(&python, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let bin = python.parent().unwrap().display().to_string();
        case.env("PATH", &format!("{bin}:/usr/bin:/bin"))
    }

    pub fn target(mut self, name: &str) -> Case {
        self.target = Some(name.to_owned());
        self
    }

    pub fn overlay(mut self, name: &str) -> Case {
        self.overlay = Some(name.to_owned());
        self
    }

    pub fn strict(mut self) -> Case {
        self.strict = true;
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Case {
        self.env.insert(name.to_owned(), value.to_owned());
        self
    }

    pub fn put(&self, path: &str, content: &str) -> PathBuf {
        let path = self.dir.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path
    }

    pub fn with(self, path: &str, content: &str) -> Case {
        self.put(path, content);
        self
    }

    pub fn load(&self) -> Loaded {
        let env = |name: &str| self.env.get(name).cloned();
        let options = LoadOptions {
            target: self.target.clone(),
            overlay: self.overlay.clone(),
            env: &env,
            machine: self.machine,
            strict: self.strict,
        };
        load(&self.dir.path().join("scalable.yaml"), &options)
    }

    /// The manifest, which must be without errors.
    pub fn manifest(&self) -> Manifest {
        let loaded = self.load();
        match loaded.manifest {
            Some(manifest) => manifest,
            None => panic!("{:#?}", loaded.diagnostics),
        }
    }

    pub fn plan(&self) -> Plan {
        plan(&self.manifest()).unwrap_or_else(|errors| panic!("{errors:#?}"))
    }

    /// Errors of load or, when there are none, of plan.
    pub fn findings(&self) -> Vec<Diagnostic> {
        let loaded = self.load();
        match loaded.manifest.map(|manifest| plan(&manifest)) {
            None => loaded.diagnostics,
            Some(Err(diagnostics)) => diagnostics,
            Some(Ok(plan)) => plan.warnings,
        }
    }

    pub fn lower(&self) -> Submission {
        self.lower_with(&LowerOptions {
            run_name: "run-1".to_owned(),
            directory: "/runs/run-1".to_owned(),
            ..LowerOptions::default()
        })
    }

    pub fn lower_with(&self, options: &LowerOptions) -> Submission {
        let manifest = self.manifest();
        let plan = plan(&manifest).unwrap();
        lower(&manifest, &plan, options).unwrap_or_else(|errors| panic!("{errors:#?}"))
    }
}

/// `line:column code path` of each finding.
pub fn places(findings: &[Diagnostic]) -> Vec<String> {
    findings.iter().map(|d| format!("{}:{} {} {}", d.line, d.column, d.code, d.path)).collect()
}

/// Codes of the errors only.
pub fn errors(findings: &[Diagnostic]) -> Vec<&'static str> {
    findings.iter().filter(|d| d.severity == Severity::Error).map(|d| d.code).collect()
}
