import Foundation
import Testing
import Virtualization

/// Whole machines with a stock Debian kernel, on whichever engine VZ_ENGINE or the host chooses.
@Suite(.serialized) struct LifeCycleTests {
    @Test func guestThatPowersOffTellsTheDelegateAndEndsStopped() throws {
        let guest = try TestGuest("echo the kernel is $(uname -r)")
        try guest.start()
        #expect(guest.waitForStop())
        #expect(guest.transcript.contains("the kernel is 6.1"))
        #expect(guest.transcript.contains("RUN-ENDED 0"))
        #expect(guest.state == .stopped)
    }

    @Test func stoppedMachineStartsAgainInTheSameObject() throws {
        let guest = try TestGuest("echo once more")
        try guest.start()
        #expect(guest.waitForStop(1))
        guest.clearTranscript()
        try guest.start()
        #expect(guest.waitForStop(2))
        #expect(guest.transcript.contains("once more"))
    }

    @Test func guestRebootGoesOnInTheSameObjectWithoutACall() throws {
        let guest = try TestGuest("if [ -e /disk/none ]; then :; fi; read word; if [ $word = again ]; then reboot -f; fi; echo second life")
        try guest.start()
        #expect(guest.waitFor("INIT-REACHED"))
        guest.clearTranscript()
        guest.send("again")
        #expect(guest.waitFor("INIT-REACHED"))
        #expect(guest.state == .running)
        guest.send("done")
        #expect(guest.waitFor("second life"))
        #expect(guest.waitForStop())
    }

    @Test func tripleFaultEndsInErrorAndTheMachineStartsAgain() throws {
        let guest = try TestGuest("read word; if [ $word = crash ]; then reboot -f; fi", arguments: "reboot=t")
        try guest.start()
        #expect(guest.waitFor("INIT-REACHED"))
        guest.send("crash")
        let error = try #require(guest.waitForFailure())
        #expect((error as? VZError)?.code == .internalError)
        #expect(error.localizedDescription.contains("triple fault"))
        #expect(guest.state == .error)
        guest.clearTranscript()
        try guest.start()
        #expect(guest.waitFor("INIT-REACHED"))
        guest.send("fine")
        #expect(guest.waitForStop())
    }

    @Test func pausedGuestIsSilentAndResumedGuestGoesOn() throws {
        let guest = try TestGuest("while true; do echo tick; done")
        try guest.start()
        #expect(guest.waitFor("tick"))
        try guest.pause()
        #expect(guest.state == .paused)
        Thread.sleep(forTimeInterval: 0.3)
        let before = guest.transcript.count
        Thread.sleep(forTimeInterval: 0.5)
        #expect(guest.transcript.count == before)
        guest.clearTranscript()
        try guest.resume()
        #expect(guest.waitFor("tick"))
        try guest.stop()
        #expect(guest.state == .stopped)
    }

    @Test(arguments: ["while true; do :; done", "sleep 1000", "cat /dev/zero"])
    func stopEndsWithinTwoSecondsWhateverTheGuestDoes(script: String) throws {
        let guest = try TestGuest(script, cpus: 2)
        try guest.start()
        #expect(guest.waitFor("INIT-REACHED"))
        let begin = Date()
        try guest.stop()
        #expect(Date().timeIntervalSince(begin) < 2)
        #expect(guest.state == .stopped)
    }

    @Test func pausedMachineStops() throws {
        let guest = try TestGuest("while true; do :; done")
        try guest.start()
        #expect(guest.waitFor("INIT-REACHED"))
        try guest.pause()
        try guest.stop()
        #expect(guest.state == .stopped)
    }

    @Test func powerButtonReachesTheGuest() throws {
        // The button's input event, as systemd-logind would see it: type 1, code 116 (KEY_POWER), value 1.
        let guest = try TestGuest("echo listening; dd if=/dev/input/event0 bs=24 count=1 2>/dev/null | od -An -tx1; echo pressed")
        try guest.start()
        #expect(guest.waitFor("listening"))
        Thread.sleep(forTimeInterval: 0.5)
        try guest.queue.sync { try guest.machine.requestStop() }
        #expect(guest.waitFor("pressed"))
        #expect(guest.transcript.contains("01 00 74 00 01 00 00 00"))
        #expect(guest.waitForStop())
    }

    @Test func eightProcessorsAreUsed() throws {
        let guest = try TestGuest("nproc; grep -c ^processor /proc/cpuinfo; for c in 0 1 2 3 4 5 6 7; do taskset $((1 << c)) echo on $c; done", cpus: 8)
        try guest.start()
        #expect(guest.waitForStop(seconds: 240))
        #expect(guest.transcript.contains("8\r\n8\r\n") || guest.transcript.contains("8\n8\n"))
        #expect(guest.transcript.contains("on 7"))
    }

    @Test func wrongTransitionsAreRefusedWithCodeFour() throws {
        let guest = try TestGuest("sleep 1000")
        for operation in [guest.pause, guest.resume, guest.stop] {
            let error = #expect(throws: VZError.self) { try operation() }
            #expect(error?.code == .invalidVirtualMachineStateTransition)
        }
        #expect(throws: VZError.self) { try guest.queue.sync { try guest.machine.requestStop() } }
        try guest.start()
        let error = #expect(throws: VZError.self) { try guest.start() }
        #expect(error?.localizedDescription == "Invalid virtual machine state transition. Transition from state \"running\" to state \"starting\" is invalid.")
        guest.finish()
    }

    @Test func releasedMachineLeavesNoThreadAndNoDescriptor() throws {
        func memories() -> Int { OwnProcess.descriptors(of: "vz-guest-memory") }
        var guest: TestGuest? = try TestGuest("while true; do :; done", cpus: 2)
        try guest?.start()
        #expect(guest?.waitFor("INIT-REACHED") == true)
        #expect(memories() == 1)
        guest = nil  // released while it runs
        let end = Date().addingTimeInterval(5)
        while Date() < end, !OwnProcess.machineThreads.isEmpty || memories() > 0 { Thread.sleep(forTimeInterval: 0.05) }
        #expect(OwnProcess.machineThreads == [])
        #expect(memories() == 0)
    }

    @Test func twoMachinesRunInOneProcess() throws {
        let one = try TestGuest("echo first; read x; echo first ends")
        let two = try TestGuest("echo second; read x; echo second ends")
        try one.start()
        try two.start()
        #expect(one.waitFor("first"))
        #expect(two.waitFor("second"))
        two.send("go")
        #expect(two.waitForStop())
        one.send("go")
        #expect(one.waitForStop())
    }

    @Test func statesAreObservable() async throws {
        let guest = try TestGuest("echo seen")
        nonisolated(unsafe) var seen: [VZVirtualMachine.State] = []
        let observation = guest.queue.sync {
            guest.machine.observe(\.state, options: [.initial, .new]) { _, change in if let value = change.newValue { seen.append(value) } }
        }
        try guest.start()
        #expect(guest.waitForStop())
        guest.queue.sync { observation.invalidate() }
        #expect(guest.queue.sync { seen } == [.stopped, .starting, .running, .stopped])
    }
}
