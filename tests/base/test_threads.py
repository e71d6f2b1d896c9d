import threading

from nepa_jax.base.threads import SharedContext


def test_a_shared_context_begins_with_the_first_and_ends_with_the_last():
    told = []
    context = SharedContext(lambda: (told.append("begin"), lambda: told.append("end"))[1])
    barrier = threading.Barrier(8)

    def work():
        with context:
            barrier.wait()
            assert told == ["begin"]
            barrier.wait()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert told == ["begin", "end"]
