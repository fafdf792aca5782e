//! A program's own functions on pods of an image that does not contain it.

use std::path::PathBuf;

use tests::Ground;

#[test]
fn functions_of_a_program_that_the_image_does_not_have() {
    let Some(directory) = std::env::var_os("SCALABLE_TEST_STATIC_BIN_DIR").map(PathBuf::from) else {
        println!("skipped functions on pods: SCALABLE_TEST_STATIC_BIN_DIR names no static programs");
        return;
    };
    let Some(ground) = Ground::new("functions") else { return };
    // What a function takes that says nothing is one cpu.
    ground.manifest(
        "resources: { requests: { cpu: 1, memory: 64Mi }, limits: { memory: 256Mi } }\nadaptive: { minimum: 1, maximum: 1 }",
        "",
    );
    let program = directory.join("functions").display().to_string();
    let finished = ground.run_to_end(&["--workflow", "--", &program, "results"]).expect(0);
    assert_eq!(finished.stdout, "3 5 6 75\n999000\ntrue\n");
    let finished = ground.run_to_end(&["--workflow", "--", &program, "objects", "20", "200000"]).expect(0);
    assert_eq!(finished.stdout, "true\ntrue\n");
    ground.nothing_is_left();
}
