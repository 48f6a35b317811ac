use super::*;

#[test]
fn the_definition_is_written() {
    assert!(definition().unwrap().contains("batonclusters.baton.dev"));
}
