// SPDX-License-Identifier: Apache-2.0

import java.io.BufferedReader;
import java.io.FileDescriptor;
import java.io.InputStreamReader;
import java.lang.reflect.Field;
import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Method;

/**
 * Calls static methods of a class as it is told on standard input: a line is a method's name and
 * its arguments, between blanks, where "null" is null. Each is answered by a line, "= value" or "!
 * exception".
 *
 * Arguments: the native library, the class.
 */
public class Calls {
    public static void main(String[] args) throws Exception {
        try {
            System.load(args[0]);
        } catch (UnsatisfiedLinkError e) {
            System.out.println("! " + e);
            return;
        }
        Method[] methods = Class.forName(args[1]).getDeclaredMethods();
        System.out.println("= loaded");
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            System.out.println(answer(methods, line.split(" ")));
        }
    }

    private static String answer(Method[] methods, String[] words) throws Exception {
        for (Method method : methods) {
            if (!method.getName().equals(words[0])) continue;
            Class<?>[] types = method.getParameterTypes();
            Object[] values = new Object[types.length];
            for (int i = 0; i < types.length; i++) values[i] = value(types[i], words[i + 1]);
            method.setAccessible(true);
            try {
                return "= " + method.invoke(null, values);
            } catch (InvocationTargetException e) {
                return "! " + e.getCause();
            }
        }
        return "? no such method";
    }

    private static Object value(Class<?> type, String word) throws Exception {
        if (type == int.class) return Integer.parseInt(word);
        if (word.equals("null")) return null;
        if (type == String.class) return word;
        FileDescriptor descriptor = new FileDescriptor();
        Field field = FileDescriptor.class.getDeclaredField("fd");
        field.setAccessible(true);
        field.setInt(descriptor, Integer.parseInt(word));
        return descriptor;
    }
}
