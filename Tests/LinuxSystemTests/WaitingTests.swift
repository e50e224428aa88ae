import Foundation
import LinuxSystem
import Testing

@Suite struct WaitingTests {
    @Test func eventsEndAWaitAndSoDoesTime() throws {
        let event = try EventFD()
        event.signal()
        event.wait()
        event.wait(milliseconds: 1)
        DispatchQueue.global().asyncAfter(deadline: .now() + 0.05) { event.signal() }
        event.wait(milliseconds: 60_000)
        #expect(!event.drain())
    }
    /// Whatever a wait has learned, it sleeps when nothing comes, and sees what comes.
    @Test func whatComesIsSeen() throws {
        var waiting = AdaptiveWait()
        var slept = 0
        for turn in 0..<1000 {
            var left = turn % 7 == 0 ? 1 : 0
            waiting.wait(
                { left == 0 },
                orSleep: {
                    slept += 1
                    left = 0
                })
            #expect(left == 0)
        }
        #expect(slept >= 1000 / 7)
    }
    /// Workers call it as they like; it must not leave the thread in another class than it was, on a host with several processors.
    @Test func schedulesAreLeftAloneWhereThereAreProcessors() throws {
        var schedule = GatheringSchedule()
        for count in 0..<10_000 { schedule.willSleep(after: count % 40) }
        #expect(ProcessInfo.processInfo.activeProcessorCount == 1 || sched_getscheduler(0) == SCHED_OTHER)
    }
}
