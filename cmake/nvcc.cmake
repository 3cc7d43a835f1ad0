# Runs one nvcc command and keeps what the compiler said: cmake -DLOG=FILE -P nvcc.cmake -- COMMAND...
# ptxas's account of registers and spills (-Xptxas -v) is read from LOG by tests/audit.
set(command)
foreach(i RANGE ${CMAKE_ARGC})
  if(started)
    list(APPEND command "${CMAKE_ARGV${i}}")
  elseif("${CMAKE_ARGV${i}}" STREQUAL "--")
    set(started TRUE)
  endif()
endforeach()
list(POP_BACK command)  # RANGE is inclusive: one empty item too many
execute_process(COMMAND ${command} RESULT_VARIABLE result OUTPUT_VARIABLE said ERROR_VARIABLE said)
file(WRITE "${LOG}" "${said}")
# C75xx: ptxas has put waits between wgmma instructions (or ignored setmaxnreg). The code is right, and slow.
string(REGEX MATCHALL "[^\n]*C75[0-9][0-9][^\n]*" serialised "${said}")
if(result)
  message(FATAL_ERROR "${said}")
elseif(serialised)
  message(FATAL_ERROR "ptxas serialises wgmma or ignores setmaxnreg:\n${serialised}")
endif()
string(REGEX MATCHALL "[^\n]*(warning|error)[^\n]*" warnings "${said}")
foreach(line IN LISTS warnings)
  message("${line}")
endforeach()
