//! Input that wants to do harm, or cannot be helped.

use tests::Sandbox;

#[test]
fn values_that_try_to_break_out_of_the_shell() {
    let sandbox = Sandbox::new();
    let hostile = [
        "plain",
        "with space",
        "; touch HERE/pwned",
        "$(touch HERE/pwned)",
        "`touch HERE/pwned`",
        "' ; touch HERE/pwned ; '",
        "\"; touch HERE/pwned; \"",
        "--help",
        "line\nbreak; touch HERE/pwned",
        "../../../etc/passwd",
        "{other}",
        "${HOME}",
        "*",
        "🌍 ünïcode",
        "\\\\ back \\n slash",
        "",
    ];
    let here = sandbox.path("").display().to_string();
    let here = here.trim_end_matches('/');
    let values: Vec<String> = hostile.iter().map(|value| value.replace("HERE", here)).collect();
    let rows: String = values.iter().map(|value| format!("\"{}\"\n", value.replace('"', "\"\""))).collect();
    sandbox.write("values.csv", format!("value\n{rows}"));
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  shown:
    from: values.csv
    shell: "PROBE arguments HERE/seen {value}"
"#,
    );
    sandbox.scalable(&["run"]).expect(0);
    let mut seen = sandbox.lines("seen");
    let mut expected: Vec<String> = values.iter().map(|value| format!("{value:?}")).collect();
    seen.sort();
    expected.sort();
    assert_eq!(seen, expected, "each value arrives as one word, as it is in the file");
    assert!(!sandbox.path("pwned").exists());
    let run = sandbox.last_run();
    assert_eq!(run.tasks().len(), values.len());
}

#[test]
fn names_that_would_leave_the_directory() {
    let sandbox = Sandbox::new();
    let long = "x".repeat(64 << 10);
    let values = ["a/b", "../../up", "..", ".", "with space", "line\nbreak", "🌍", "=,=", long.as_str()];
    let rows: String = values.iter().map(|value| format!("\"{value}\"\n")).collect();
    sandbox.write("values.csv", format!("value\n{rows}"));
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  named:
    from: values.csv
    command: ["PROBE", write, "{outputs.file}", "x"]
    outputs: { file: file }
"#,
    );
    sandbox.scalable(&["run"]).expect(0);
    let run = sandbox.last_run();
    let outputs = run.outputs();
    assert_eq!(outputs.len(), values.len(), "{outputs:?}");
    for path in &outputs {
        let parts: Vec<&str> = path.split('/').collect();
        assert_eq!((parts.len(), parts[0], parts[2]), (3, "named", "file"), "one directory an element: {path}");
        assert!(parts[1].len() <= 255 && !parts[1].contains('\n'), "{path:?}");
    }
    // Nothing was written above the directory of outputs.
    assert!(!run.directory.join("up").exists() && !sandbox.path(".scalable/runs/up").exists());
}

#[test]
fn group_names_that_are_refused() {
    for name in ["\"../up\"", "\"a b\"", "\"a\\nb\"", "\"\"", "\"🌍\"", "\"a[0]\"", &format!("\"{}\"", "x".repeat(64 << 10))] {
        let sandbox = Sandbox::new();
        sandbox.manifest(&format!("targets: {{ local: {{ provider: local }} }}\ntasks:\n  {name}: {{ command: [\"true\"] }}\n"));
        let finished = sandbox.scalable(&["run"]).expect(2);
        assert!(finished.stderr.len() + finished.stdout.len() < 20_000, "{name:.20}: an error is read by people");
    }
}

#[test]
fn files_that_cannot_be_read() {
    let sandbox = Sandbox::new();
    sandbox.write("scalable.yaml", [0xff, 0xfe, 0x00, 0x80]);
    sandbox.scalable(&["run"]).expect(2);
    sandbox.write("scalable.yaml", "");
    sandbox.scalable(&["run"]).expect(2).says(&["empty"]);
    std::fs::remove_file(sandbox.path("scalable.yaml")).unwrap();
    std::fs::create_dir(sandbox.path("scalable.yaml")).unwrap();
    sandbox.scalable(&["run"]).expect(2);
    sandbox.scalable(&["run", "none.yaml"]).expect(2).says(&["none.yaml"]);
    std::fs::remove_dir(sandbox.path("scalable.yaml")).unwrap();
    for (body, words) in [
        ("tasks:\n  a: { command: [\"true\"], files: [nowhere.py] }\n", "nowhere.py"),
        ("tasks:\n  a: { command: [\"true\", \"{v}\"], from: nowhere.csv }\n", "nowhere.csv"),
        ("tasks:\n  a: { command: [\"true\"], files: [../outside] }\n", "../outside"),
    ] {
        sandbox.manifest(&format!("targets: {{ local: {{ provider: local }} }}\n{body}"));
        sandbox.scalable(&["run"]).expect(2).says(&[words]);
    }
    assert!(sandbox.runs().is_empty());
}

#[test]
fn a_bomb_of_aliases() {
    let sandbox = Sandbox::new();
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 10].join(", ");
        bomb.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
    }
    sandbox.write("scalable.yaml", bomb);
    let finished = sandbox.scalable(&["validate"]).expect(2);
    assert!(finished.peak_bytes < 256 << 20, "{} bytes", finished.peak_bytes);
    let deep = format!("targets: {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    sandbox.write("scalable.yaml", deep);
    sandbox.scalable(&["validate"]).expect(2);
}

#[test]
fn a_task_that_writes_without_end() {
    let sandbox = Sandbox::new();
    sandbox.manifest(
        r#"
targets: { local: { provider: local } }
tasks:
  chatty:
    command: [sh, -c, "yes 'much too much to keep' | head -c 30000000; echo the last words >&2; exit 4"]
"#,
    );
    sandbox.scalable(&["run"]).expect(1).says(&["the last words"]);
    let task = sandbox.last_run().task("chatty[0]");
    assert!(task.to_string().len() < 100_000, "a record is bounded: {} bytes", task.to_string().len());
}
