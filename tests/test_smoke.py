def test_a_sandbox_lives_and_dies(store):
    sandbox = store.create(node="node-1")
    store.start(sandbox.id, pid=1)
    with store.batch() as batch:
        result = batch.exit(sandbox.id, exit_status=3)
    assert result.result().status.exit_status == 3
    assert store.remove(sandbox.id)


def test_audit(store):
    with store.batch() as batch:
        for i in range(20):
            batch.create(sandbox_id=f"s{i}", node="n")
            batch.start(f"s{i}", pid=i)
            if i % 2: batch.remove(f"s{i}", force=True)
    audit = store.audit()
    assert audit.problems == []
    assert len(audit.sandboxes) == 10 and len(audit.events) == 60
    assert len(store.ids(node="n")) == 10
